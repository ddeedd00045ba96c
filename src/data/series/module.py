"""Series: stamps cleaned, put on a regular grid and standardized once; windows taken by the batch."""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from src.data import cache
from src.data.delimited import blocks
from src.data.frame import FrameDataModule
from src.data.loader import Batch, Loader
from src.data.module import State
from src.data.order import EvalOrder
from src.data.report import Cleaning
from src.data.series.augment import Augmentation, Draw
from src.data.series.prepare import Preparation
from src.data.series.seasons import seasons
from src.data.series.stamps import Clock
from src.data.series.windows import Windows, moved
from src.run.errors import ConfigError, DataError
from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS = 1e-5  # the least standard deviation of a window


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
        stride: in training, steps between the windows of an epoch, which begin elsewhere in each; evaluation takes
            every window.
        val_frac: share of the rows held out for validation, after those that are trained on.
        test_frac: share held out for testing, at the end.
        val_from: first stamp of validation, in place of the shares.
        test_from: first stamp of the test.
        until: end of the test; rows from this stamp on are not used.
        freq: the step, such as `15m`, `1h`, `1d`, `1mo`; rows that come more often are brought to it by means. By
            default it is found.
        time_zone: of stamps that have no offset, such as `Europe/Berlin`: daylight saving is heeded, and the hour that
            comes twice is told by its order. Also the zone of the calendar and of predictions.
        season: steps after which values come again, for the forecast beside the model's; by default those of a day,
            for days of a week, for months and quarters of a year.
        normalize: what the network gets is standardized by `train`, or besides each `window` by itself (Kim et al.,
            Reversible Instance Normalization, 2022, without its affine part).
        calendar: what the network is told of each stamp, also of the future, as sine and cosine.
        augment: operations on training windows, in this order.
        max_gap: steps over which holes are filled with the value before; windows that look at longer ones are left
            out. By default a season, else a window.
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
        stride: int = 1,
        val_frac: float = 0.1,
        test_frac: float = 0.2,
        val_from: str | None = None,
        test_from: str | None = None,
        until: str | None = None,
        freq: str | None = None,
        time_zone: str | None = None,
        season: int | None = None,
        normalize: Literal["train", "window"] = "train",
        calendar: list[Literal["hour", "weekday", "day", "month"]] | None = None,
        augment: list[Augmentation] | None = None,
        max_gap: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.file and dataset:
            raise ConfigError(f"data.file, data.dataset: {self.file} and {dataset} are named -> leave one out")
        if stride < 1:
            raise ConfigError(f"data.stride: {stride} is less than 1")
        self.dataset, self.window, self.horizon, self.stride = dataset, window, horizon, stride
        self.normalize, self.augment = normalize, augment or []
        self.epoch_order = partial(moved, stride)
        source = self.file.name if self.file else dataset or type(self).__name__
        self.preparation = Preparation(
            **{"file": self.file, "source": source, "time": time, "group": group, "targets": targets},
            **{"past": past or [], "known": known or [], "window": window, "horizon": horizon},
            **{"val_frac": val_frac, "test_frac": test_frac, "val_from": val_from, "test_from": test_from},
            **{"until": until, "freq": freq, "time_zone": time_zone, "season": season},
            **{"calendar": calendar or [], "max_gap": max_gap},
        )
        self.num_known = len(known or []) + 2 * len(calendar or [])
        self.series_names: list[str] = []
        self.tiles: dict[str, Windows] = {}  # what is predicted of a split

    def depends_on(self) -> tuple[dict[str, Any], list[Path]]:
        modules = {*Path(__file__).parent.glob("*.py"), Path(inspect.getfile(type(self)))}
        options = asdict(self.preparation) | {"format": asdict(self.format), "types": self.types, "drop": self.drop}
        return options | {"source": sorted(path.read_text() for path in modules)}, [self.file] if self.file else []

    def load(self) -> pl.DataFrame:
        return seasons() if self.dataset else super().load()

    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        state = fitted["statistics"] if fitted else {}
        frame, columns = self.read(cleaning, state.get("columns"))
        if fitted and self.file:
            there = next(blocks(self.file, self.format, Cleaning("skip"))).columns[:-1]
            if extra := [name for name in there if name not in frame.columns]:
                cleaning.notes.append(f"{len(extra)} columns are not used: {', '.join(extra[:12])}")
        return self.preparation.build(frame, columns, cleaning, state)

    def open(self, split: str, read: Callable[[str], Tensor]) -> Windows:
        rows = {name: read(name) for name in ("values", "targets", "series", "time")}
        windows = partial(Windows, rows, window=self.window, horizon=self.horizon, num_known=self.num_known)
        season = self.report["season"] or 0
        self.tiles[split] = windows(read("tiles"), season=season)
        if split == "train" and not self.fitted:
            return windows(read("starts"), stride=self.stride)
        return windows(read("starts"), season=season)

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self.series_names, statistics = self.report.pop("series_names"), self.report.pop("statistics")
        channels = self.tiles["test"].values.shape[1]
        facts = {"window": self.window, "horizon": self.horizon, "in_channels": channels, "num_known": self.num_known}
        return facts | {"out_channels": len(statistics["targets"]["names"])}, statistics

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "predict" and not len(self.splits["test"]):
            what = f"no window of {self.window} steps is followed by {self.horizon} with known targets"
            raise DataError(f"{self.preparation.source}: {what} -> give more rows, or take python -m src.predict")

    def predict_dataloader(self) -> Loader:
        tiles = self.tiles[self.predict_split]
        if not len(tiles):
            what = f"no forecast can be made in {self.predict_split}"
            hint = "give rows without holes at their end, and with values of data.known after it"
            raise DataError(f"{self.preparation.source}: {what} -> {hint}")
        return Loader(tiles, EvalOrder(len(tiles), *self.share()))

    def keys(self, split: str, index: np.ndarray) -> dict[str, Any]:
        """The stamp of each step of the tiles `index` [N], and its series if there are several: [N * horizon]."""
        tiles = self.tiles[split]
        rows = (tiles.starts[index][:, None] + self.window + torch.arange(self.horizon)).flatten()
        local = Clock(**self.statistics["clock"]).local(
            pl.Series(tiles.rows["time"][rows].numpy()).cast(pl.Datetime("us"))
        )
        out = {"time": local.dt.to_string("iso:strict").to_list()}
        if self.statistics["roles"]["group"]:
            out["series"] = [self.series_names[i] for i in tiles.rows["series"][rows].tolist()]
        return out

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Whole batch, on the device: x augmented in training, as the weights are; with `normalize: window` the columns
        of the targets standardized by each window, whose `mean` and `std` [N, 1, out_channels] are added."""
        batch = {**batch, "x": batch["x"].float()}
        window, out = self.window, self.facts["out_channels"]
        if self.augment and self.trainer and self.trainer.training:
            seen = batch["x"][:, :window, : self.facts["in_channels"] - self.facts["num_known"]]
            for i, operation in enumerate(self.augment):
                draw = Draw(batch["index"], self.seed, self.trainer.current_epoch, i)
                changed, batch["targets"] = operation(seen, batch["targets"], draw)
                seen.copy_(changed)
        if self.normalize == "window":
            seen = batch["x"][:, :window, :out]
            batch["mean"] = seen.mean(1, keepdim=True)
            batch["std"] = (seen.var(1, keepdim=True, correction=0) + EPS**2).sqrt()
            seen.copy_((seen - batch["mean"]) / batch["std"])
        return {**batch, "x": self.as_weights(batch["x"])}

    def picture(self, batch: Batch) -> "Figure":
        """Windows as the network gets them, the columns of the targets, and what is to be forecast."""
        targets, x = batch["targets"].float().cpu(), batch["x"].float().cpu()
        if "mean" in batch:
            targets = (targets - batch["mean"].cpu()) / batch["std"].cpu()
        fig = figure(12, 5)
        ahead = np.arange(self.window, self.window + self.horizon)
        for axes, seen, wanted in zip(fig.subplots(2, 4).flat, x, targets, strict=False):
            for c in range(min(3, targets.shape[2])):
                axes.plot(seen[: self.window, c], color=f"C{c}", linewidth=0.8)
                axes.plot(ahead, wanted[:, c], color=f"C{c}", linewidth=0.8, linestyle=":")
            axes.tick_params(labelsize=6)
        fig.axes[0].legend(self.statistics["targets"]["names"][:3], fontsize=6)
        return fig
