"""Series: stamps cleaned, put on a regular grid and standardized once; windows taken by the batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import available_timezones

import numpy as np
import polars as pl
import torch
from torch import Tensor

from src.data import cache, cells
from src.data.columns import DATES, Column
from src.data.delimited import ROW, blocks
from src.data.frame import FrameDataModule, describe
from src.data.loader import Batch, Loader
from src.data.module import State
from src.data.order import EvalOrder
from src.data.report import Cleaning
from src.data.series import grid as on
from src.data.series import raw as outside
from src.data.series import stamps
from src.data.series.augment import Augmentation, normals
from src.data.series.roles import Plain, find_roles, fit, numbers
from src.data.series.seasons import seasons
from src.data.series.stamps import SERIES, TIME
from src.data.series.windows import Windows, moved
from src.run.errors import ConfigError, DataError
from src.run.figures import figure
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOK = "look at holes longer than data.max_gap, or at values of data.known that are not there"  # windows
EPS = 1e-5  # the least standard deviation of a window
EVER = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)


class SeriesDataModule(FrameDataModule):
    """One series or many of numbers over time; a sample is a window of the past with the steps after it.

    Args:
        dataset: `seasons`, three hourly series made in code: a trend, seasons of a day and a week, noise and holes.
        time: the column of stamps; by default the only one with dates.
        targets: columns to forecast; by default all numbers that no other option names.
        known: columns of numbers that are known in the future, too, such as holidays or prices.
        past: more columns of numbers to look at, known only up to now.
        group: the column that tells series apart, where rows of several follow each other.
        window: steps that a forecast looks back on.
        horizon: steps that are forecast.
        val_frac: share of the rows held out for validation, after those that are trained on.
        test_frac: share held out for testing, at the end.
        val_from: first stamp of validation, in place of the shares.
        test_from: first stamp of the test.
        until: end of the test; rows from this stamp on are not used.
        freq: the step, such as `15m`, `1h`, `1d`, `1mo`, to which others are brought by means; by default it is found.
        time_zone: of stamps without offset, such as `Europe/Berlin`, where an hour that comes twice is told by its
            order; also that of the calendar and of predictions.
        season: steps after which values come again; by default those of a day, of days a week, of months a year.
        calendar: what the network is told of each stamp, also of the future, as sines and cosines.
        max_gap: steps of a hole that windows may look at; by default a season, else a window.
        stride: in training, steps between the windows of an epoch, which begin elsewhere in each.
        normalize: what the network gets is standardized by `train`, or besides each `window` by itself (Kim et al.,
            Reversible Instance Normalization, 2022, without its affine part).
        augment: operations on training windows, in this order.
    """

    provides = ("window", "horizon", "in_channels", "out_channels", "num_known")  # facts, which no config states
    sources = ("file", "dataset")

    def __init__(
        self,
        dataset: Literal["seasons"] | None = None,
        time: str | None = None,
        targets: list[str] | None = None,
        known: list[str] | None = None,
        past: list[str] | None = None,
        group: str | None = None,
        window: int = 96,
        horizon: int = 24,
        val_frac: float = 0.1,
        test_frac: float = 0.2,
        val_from: str | None = None,
        test_from: str | None = None,
        until: str | None = None,
        freq: str | None = None,
        time_zone: str | None = None,
        season: int | None = None,
        calendar: list[Literal["hour", "weekday", "day", "month"]] | None = None,
        max_gap: int | None = None,
        stride: int = 1,
        normalize: Literal["train", "window"] = "train",
        augment: list[Augmentation] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset, self.stride, self.normalize, self.augment = dataset, stride, normalize, augment or []
        self.roles: Plain = {"time": time, "group": group, "targets": targets, "past": past or [], "known": known or []}
        self.window, self.horizon, self.fractions = window, horizon, (val_frac, test_frac)
        self.dates = {"val_from": val_from, "test_from": test_from, "until": until}
        self.freq, self.time_zone, self.season = freq, time_zone, season
        self.calendar, self.max_gap = calendar or [], max_gap
        self.num_known = len(self.roles["known"]) + 2 * on.HARMONICS * len(self.calendar)
        self.named = self.file.name if self.file else type(self).__name__  # by errors
        self.check_options()
        self.epoch_order = partial(moved, stride)
        self.predicts = False
        self.given: pl.DataFrame | None = None  # to predict
        self.tiles: dict[str, Windows] = {}  # what is predicted of a split

    def check_options(self) -> None:
        for name, least in (("window", 1), ("horizon", 1), ("stride", 1), ("season", 1), ("max_gap", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"data.{name}: {value} is less than {least}")
        if self.file and self.dataset:
            raise ConfigError(f"data.file, data.dataset: {self.file} and {self.dataset} are named -> leave one out")
        if min(self.fractions) <= 0 or sum(self.fractions) >= 1:
            raise ConfigError(f"data.val_frac, data.test_frac: {self.fractions} leave nothing for a split")
        if (self.dates["val_from"] is None) != (self.dates["test_from"] is None):
            raise ConfigError("data.val_from, data.test_from: one of them is given -> give both, or none")
        if self.time_zone and self.time_zone not in available_timezones():
            raise ConfigError(f"data.time_zone: {self.time_zone} is none -> give one such as Europe/Berlin")
        stamps.step_of(self.freq or "1d")
        for name, text in self.dates.items():
            stamps.moment(name, text)

    def load(self) -> pl.DataFrame:
        return self.given if self.given is not None else seasons() if self.dataset else super().load()

    def depends_on(self) -> tuple[dict[str, Any], list[Path]]:
        later = {"stride", "normalize", "augment", "predicts", "given", "tiles"}  # do not change what is prepared
        options = {name: value for name, value in self.reading().items() if name not in later}
        code = {path.name: path.read_text() for path in Path(__file__).parent.glob("*.py")}
        return options | {"code": code}, [self.file] if self.file else []

    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        state = fitted["statistics"] if fitted else {}
        frame, columns = self.read(cleaning, state.get("columns"))
        roles = state.get("roles") or find_roles(columns, self.roles)
        grid, found = self.on_grid(frame, columns, roles, cleaning, state)
        del frame  # the grid is a copy
        spans = {"test": EVER} if fitted else self.spans(grid, roles["targets"])
        if not fitted:
            train = grid.filter(pl.col(TIME).to_physical() < spans["train"][1])
            state = fit(train, columns, roles, self.roles["targets"] is not None, cleaning)
            state |= found | {"season": self.season or stamps.season_of(found["freq"])}
        if state["season"] is None:
            cleaning.notes.append(f"data.season: steps of {found['freq']} have none of their own: last values stand in")
        figures = {"freq": found["freq"], "season": state["season"], "time_zone": stamps.zone_of(grid.schema)}
        figures |= {"statistics": state, "series": grid[SERIES].unique(maintain_order=True).to_list()}
        figures |= on.notable(grid, state["inputs"]["names"], cleaning)
        arrays, more = self.split(grid, spans, state, cleaning)
        return arrays, figures | more

    def on_grid(
        self, frame: pl.DataFrame, columns: list[Column], roles: Plain, cleaning: Cleaning, trained: Plain
    ) -> tuple[pl.DataFrame, Plain]:
        """The rows that were read on a regular grid; its step, and the zone whose clock they go by."""
        own, names, named = self.look_at_head(columns, roles, cleaning), numbers(roles), self.named
        frame = stamps.stamped(frame, roles, self.time_zone, own, cleaning, named)
        frame = stamps.one_each(frame, names, cleaning, named)
        frame, freq = stamps.regular(frame, names, self.freq, self.time_zone, named)
        found = {"freq": freq, "time_zone": self.time_zone or own}
        for name, now in found.items():
            if now != (before := trained.get(name, now)) and (name == "freq" or not self.time_zone):
                raise DataError(f"{named}: {name} is {now}, the model's {before} -> give data.{name}")
        if self.dates["until"] and not trained:
            until = stamps.moment("until", self.dates["until"], stamps.zone_of(frame.schema))
            frame = frame.filter(pl.col(TIME).to_physical() < until)
        grid = on.on_grid(frame, roles["targets"], freq, self.horizon, named)
        grid = on.without_short(grid, self.window + (0 if trained else self.horizon), cleaning, named)
        if grid.is_empty():
            raise DataError(f"{cleaning.first or named + ': no row is left'} -> see data.until, data.invalid")
        return grid, found

    def look_at_head(self, columns: list[Column], roles: Plain, cleaning: Cleaning) -> str | None:
        """Note the columns of a file that are not used; the zone of its stamps, UTC where they have offsets."""
        source, found = self.load() if self.file is None else self.file, {c["name"]: c for c in columns}
        head = next(blocks(source, self.format, Cleaning("skip"))).drop(ROW)
        used = [roles["time"], roles["group"], *numbers(roles), *self.drop]
        kinds = {name: f" ({found[name]['kind']})" if name in found else "" for name in head.columns}
        if unused := [name + kind for name, kind in kinds.items() if name not in used]:
            cleaning.notes.append(f"{len(unused)} columns are not used: {', '.join(unused[:12])}")
        if (time := head[roles["time"]]).dtype in DATES:
            return getattr(time.dtype, "time_zone", None)
        given = self.format.date_format or found[roles["time"]].get("format")
        form = given or cells.date_formats(cells.as_text(time, self.format))[0]
        return "UTC" if form.endswith(cells.OFFSETS) else None

    def spans(self, grid: pl.DataFrame, targets: list[str]) -> dict[str, tuple[int, int]]:
        """The first stamp of each split, and the one after its last, in microseconds."""
        known = grid.filter(pl.any_horizontal(pl.col(targets).is_not_null()))[TIME].sort()
        at, zone = known.to_physical(), stamps.zone_of(grid.schema)
        if self.dates["val_from"]:
            val, test = (stamps.moment(name, self.dates[name], zone) for name in ("val_from", "test_from"))
            if not at[0] < val < test <= at[-1]:
                what = f"data.val_from, data.test_from: they do not part the stamps from {known[0]} to {known[-1]}"
                raise DataError(f"{what} -> take two between them, in order")
        else:
            val, test = (at[int(len(at) * share)] for share in (1 - sum(self.fractions), 1 - self.fractions[1]))
        return {"train": (EVER[0], val), "val": (val, test), "test": (test, EVER[1])}

    def split(
        self, grid: pl.DataFrame, spans: dict[str, tuple[int, int]], state: Plain, cleaning: Cleaning
    ) -> tuple[dict[str, dict[str, np.ndarray]], Plain]:
        """The arrays of each split, and figures of it."""
        roles, season, arrays, figures, parts = state["roles"], state["season"] or 0, {}, {}, {}
        gap = self.max_gap if self.max_gap is not None else season or self.window
        values = on.rows_of(grid, state, self.calendar)
        cutter = on.Cutter(grid, roles, self.window, self.horizon, gap)
        cleaning.notes += cutter.silent[:12]
        for split, span in spans.items():
            rows, windows, figures[split] = cutter.cut(*span, max(self.window, season))
            arrays[split] = {name: array[rows] for name, array in values.items()} | windows
            part = grid.filter(on.KNOWN & pl.col(TIME).to_physical().is_between(*span, closed="left"))
            figures[split] |= {"steps": len(part), "series": part[SERIES].n_unique()}
            parts[split] = part.with_columns(pl.col(TIME).alias(roles["time"]))
            if left_out := figures[split]["windows_left_out"]:
                what = f"{left_out:,} of {left_out + figures[split]['windows']:,} windows of {split} are left out"
                cleaning.notes.append(f"{what}: they {LOOK}, or know no target")
        columns = [{"name": roles["time"], "kind": "date"}]
        columns += [{"name": name, "kind": "number"} for name in state["inputs"]["names"]]
        return arrays, figures | {"silent": cutter.silent} | describe(parts, columns)

    def open(self, split: str, read: Callable[[str], Tensor]) -> Windows:
        rows = {name: read(name) for name in ("values", "targets", "numbers", "series", "time")}
        windows = partial(Windows, rows, window=self.window, horizon=self.horizon, num_known=self.num_known)
        season = self.report["season"] or 0
        self.tiles[split] = windows(read("tiles"), season=season)
        how = {"stride": self.stride} if split == "train" and not self.fitted else {"season": season}
        return self.tiles[split] if self.predicts else windows(read("starts"), **how)

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        statistics = self.report.pop("statistics")
        channels = self.tiles["test"].values.shape[1]
        facts = {"window": self.window, "horizon": self.horizon, "in_channels": channels, "num_known": self.num_known}
        return facts | {"out_channels": len(statistics["targets"]["names"])}, statistics

    def setup(self, stage: str) -> None:
        self.predicts = stage == "predict"
        super().setup(stage)
        for split in ("test", "val", "train"):
            if not self.predicts and not len(self.splits[split]):
                what = f"{split} has no window of {self.window} steps that {self.horizon} with known targets follow"
                what = "; ".join([what, *self.report["silent"][:3]])
                hint = "give more rows, or lower data.window or data.horizon, or raise data.max_gap, or move the splits"
                raise DataError(f"{self.named}: {what} -> {hint}")

    def predict_dataloader(self) -> Loader:
        tiles = self.tiles[self.predict_split]
        if not len(tiles):
            what = f"no forecast can be made in {self.predict_split}: they {LOOK}"
            raise DataError(f"{self.named}: {what} -> give rows without holes, and data.known after the end")
        if unmade := self.report[self.stored_as(self.predict_split)]["forecasts_left_out"]:
            rank_zero_print(f"{self.named}: {unmade} more forecasts are not made: they {LOOK}.")
        return Loader(tiles, EvalOrder(len(tiles), *self.share()))

    def keys(self, split: str, index: np.ndarray) -> dict[str, Any]:
        """Of each step of the tiles `index` [N]: stamp, series if there are several, and targets, all [N * horizon]."""
        tiles = self.tiles[split]
        rows = (tiles.starts[index][:, None] + self.window + torch.arange(self.horizon)).flatten()
        out: Plain = {"time": stamps.told(pl.Series(tiles.rows["time"][rows].numpy()), self.report["time_zone"])}
        if self.statistics["roles"]["group"]:
            out["series"] = [self.report["series"][i] for i in tiles.rows["series"][rows].tolist()]
        names, numbers = self.statistics["targets"]["names"], tiles.rows["numbers"][rows].numpy()
        return out | {f"target_{name}" if len(names) > 1 else "target": numbers[:, i] for i, name in enumerate(names)}

    inputs, raw, from_raw, samples_of = outside.inputs, outside.raw, outside.from_raw, outside.samples_of

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Whole batch, on the device: x augmented in training, as the weights are; with `normalize: window` the columns
        of the targets standardized by each window, whose `mean` and `std` [N, 1, out_channels] are added."""
        batch = {**batch, "x": batch["x"].float()}
        window, out = self.window, self.facts["out_channels"]
        if self.augment and self.trainer and self.trainer.training:
            seen = batch["x"][:, :window, : self.facts["in_channels"] - self.facts["num_known"]]
            for i, operation in enumerate(self.augment):
                normal = partial(normals, batch["index"], self.seed, self.trainer.current_epoch, i)
                changed, batch["targets"] = operation(seen, batch["targets"], normal)
                seen.copy_(changed)
        if self.normalize == "window":
            seen = batch["x"][:, :window, :out]
            batch["mean"] = seen.mean(1, keepdim=True)
            batch["std"] = (seen.var(1, keepdim=True, correction=0) + EPS**2).sqrt()
            seen.copy_((seen - batch["mean"]) / batch["std"])
        return {**batch, "x": self.as_weights(batch["x"])}

    def picture(self, batch: Batch) -> "Figure":
        """Windows as the network gets them, columns of the targets."""
        fig, names = figure(12, 5), self.statistics["targets"]["names"][:3]
        for axes, x in zip(fig.subplots(2, 4).flat, batch["x"].float().cpu(), strict=False):
            axes.plot(x[: self.window, : len(names)], linewidth=0.8, label=names)
            axes.tick_params(labelsize=6)
        fig.axes[0].legend(fontsize=6)
        return fig
