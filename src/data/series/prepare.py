"""From rows as they were read to the arrays of each split."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import polars as pl

from src.data import cache
from src.data.columns import Column
from src.data.delimited import blocks
from src.data.frame import FrameDataModule, describe
from src.data.module import State
from src.data.report import Cleaning
from src.data.series import grid as on
from src.data.series.roles import NUMBERS, Roles, find_roles, fit, note_outliers
from src.data.series.stamps import SERIES, TIME, Clock, find_freq, means, one_each, season_of, stamped, step_of
from src.run.errors import ConfigError, DataError

EVER = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
Spans = dict[str, tuple[int, int]]  # of each split: its first stamp, and the one after its last, in microseconds


class GridDataModule(FrameDataModule):
    """Base of SeriesDataModule: what the prepared data is made from.

    Args:
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
        freq: the step, such as `15m`, `1h`, `1d`, `1mo`; rows that come more often are brought to it by means. By
            default it is found.
        time_zone: of stamps that have no offset, such as `Europe/Berlin`: daylight saving is heeded, and the hour that
            comes twice is told by its order. Also the zone of the calendar and of predictions.
        season: steps after which values come again, for the forecast beside the model's; by default those of a day,
            for days of a week, for months and quarters of a year.
        calendar: what the network is told of each stamp, also of the future, as sines and cosines.
        max_gap: steps over which holes are filled with the value before; windows that look at longer ones are left
            out. By default a season, else a window.
    """

    def __init__(
        self,
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.roles: Roles = {"time": time, "group": group, "targets": targets, "past": past or [], "known": known or []}
        self.window, self.horizon, self.fractions = window, horizon, (val_frac, test_frac)
        self.dates = {"val_from": val_from, "test_from": test_from, "until": until}
        self.freq, self.time_zone, self.season = freq, time_zone, season
        self.calendar, self.max_gap = calendar or [], max_gap
        self.num_known = len(self.roles["known"]) + 2 * on.HARMONICS * len(self.calendar)
        self.check_options()

    def check_options(self) -> None:
        for name, least in (("window", 1), ("horizon", 1), ("season", 1), ("max_gap", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"data.{name}: {value} is less than {least}")
        if min(self.fractions) <= 0 or sum(self.fractions) >= 1:
            raise ConfigError(f"data.val_frac, data.test_frac: {self.fractions} leave nothing for a split")
        if (self.dates["val_from"] is None) != (self.dates["test_from"] is None):
            raise ConfigError("data.val_from, data.test_from: one of them is given -> give both, or none")
        for name in self.dates:
            self.moment(name)
        step_of(self.freq or "1d")
        try:
            ZoneInfo(self.time_zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError) as e:
            raise ConfigError(f"data.time_zone: {self.time_zone} is none -> give one such as Europe/Berlin") from e

    def moment(self, name: str) -> datetime:
        try:
            return datetime.fromisoformat(self.dates[name] or "1970-01-01")
        except ValueError as e:
            what = f"data.{name}: {self.dates[name]} is no date"
            raise ConfigError(f"{what} -> write it as 2026-01-31 or 2026-01-31 12:00") from e

    def depends_on(self) -> tuple[dict[str, Any], list[Path]]:
        names = ("roles", "window", "horizon", "fractions", "dates", "freq", "time_zone", "season", "calendar")
        options = {name: getattr(self, name) for name in (*names, "max_gap")} | self.reading()
        code = {path.name: path.read_text() for path in Path(__file__).parent.glob("*.py")}
        return options | {"code": code}, [self.file] if self.file else []

    @property
    def named(self) -> str:
        """What errors call the data."""
        return self.file.name if self.file else type(self).__name__

    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        state = fitted["statistics"] if fitted else {}
        frame, columns = self.read(cleaning, state.get("columns"))
        roles = state.get("roles") or find_roles(columns, self.roles, cleaning)
        frame, clock, freq = self.in_order(frame, columns, roles, cleaning, state.get("freq"))
        spans = {"test": EVER} if state else self.spans(frame, roles["targets"], clock)
        if not state:
            train = frame.filter(pl.col(TIME).to_physical() < spans["train"][1])
            inputs = fit(train, roles, self.roles["targets"] is not None, cleaning)
            used = {roles["time"], roles["group"], *inputs["names"]}
            state = {"targets": {name: values[: len(roles["targets"])] for name, values in inputs.items()}}
            state |= {"inputs": inputs, "columns": [c for c in columns if c["name"] in used], "roles": roles}
            state |= {"freq": freq, "season": self.season or season_of(freq)}
        if state["season"] is None:
            cleaning.notes.append(f"data.season: steps of {freq} have none of their own, the last value stands in")
        grid = on.on_grid(frame, roles["targets"], freq, self.horizon, self.named)
        grid = on.without_short(grid, self.window + (0 if fitted else self.horizon), cleaning, self.named)
        figures = {"freq": freq, "season": state["season"], "gaps": on.note_holes(grid, cleaning)}
        figures["outliers"] = note_outliers(frame, state["inputs"]["names"], cleaning)
        arrays, more = self.split(grid, spans, clock, state, cleaning)
        names = grid[SERIES].unique(maintain_order=True).to_list()
        return arrays, figures | more | {"statistics": state | {"clock": asdict(clock)}, "series_names": names}

    def in_order(
        self, frame: pl.DataFrame, columns: list[Column], roles: Roles, cleaning: Cleaning, trained: str | None
    ) -> tuple[pl.DataFrame, Clock, str]:
        """Rows in order, one for each stamp, all one step apart but for holes; how stamps are kept; and the step."""
        names = [name for option in NUMBERS for name in roles[option]]
        is_utc = next(c.get("utc", False) for c in columns if c["name"] == roles["time"])
        if self.file:
            head = next(blocks(self.file, self.format, Cleaning("skip")))
            if isinstance(dtype := head[roles["time"]].dtype, pl.Datetime):  # not that of the file trained on
                is_utc = dtype.time_zone is not None
            if trained and (extra := [name for name in head.columns[:-1] if name not in frame.columns]):
                cleaning.notes.append(f"{len(extra)} columns are not used: {', '.join(extra[:12])}")
        frame = stamped(frame, roles["time"], roles["group"], cleaning, self.named)
        clock = Clock.of(frame, self.time_zone, is_utc, self.freq)
        frame = clock.keep(frame, cleaning, self.named)
        if self.dates["until"] and not trained:
            frame = frame.filter(pl.col(TIME).to_physical() < clock.moment(self.moment("until")))
        frame = one_each(frame, names, roles["group"] is not None, cleaning, self.named)
        cleaning.check()
        if frame.is_empty():
            raise DataError(f"{self.named}: no row is left -> see data.until, data.invalid")
        freq = self.freq or find_freq(frame, self.named)
        if trained and step_of(freq) != step_of(trained):
            raise DataError(f"{self.named}: the step is {freq}, the model's {trained} -> --data.freq {trained}")
        return (means(frame, names, freq) if self.freq else frame), clock, freq

    def spans(self, frame: pl.DataFrame, targets: list[str], clock: Clock) -> Spans:
        known = frame.filter(pl.any_horizontal(pl.col(targets).is_not_null()))[TIME].sort()
        if known.is_empty():
            raise DataError(f"{self.named}: no target has a value -> see data.targets")
        stamps, dates = known.to_physical(), self.dates
        if dates["val_from"]:
            val, test = (clock.moment(self.moment(name)) for name in ("val_from", "test_from"))
            if not stamps[0] < val < test <= stamps[-1]:
                what = (
                    f"data.val_from, data.test_from: {dates['val_from']}, {dates['test_from']} do not part the stamps"
                )
                raise DataError(f"{what} from {known[0]} to {known[-1]} -> take two between them, in order")
        else:
            shares = (1 - sum(self.fractions), 1 - self.fractions[1])
            val, test = (stamps[int(len(stamps) * share)] for share in shares)
        return {"train": (EVER[0], val), "val": (val, test), "test": (test, EVER[1])}

    def split(
        self, grid: pl.DataFrame, spans: Spans, clock: Clock, state: dict[str, Any], cleaning: Cleaning
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        """The arrays of each split, and figures of it."""
        (names, mean, std), roles = state["inputs"].values(), state["roles"]
        gap = self.max_gap if self.max_gap is not None else state["season"] or self.window
        inputs = grid.select(on.filled(names, mean, std)).to_numpy()
        values = np.concatenate([inputs, on.calendar(clock.local(grid[TIME]), self.calendar)], 1)
        units = zip(roles["targets"], mean, std, strict=False)
        targets = grid.select(((pl.col(n) - m) / s).cast(pl.Float32) for n, m, s in units).to_numpy()
        rows = {"values": values, "targets": targets, "time": grid[TIME].to_physical().to_numpy()}
        rows["series"] = grid[SERIES].rle_id().cast(pl.Int32).to_numpy()
        blind, scored = (on.bridged(name, gap) for name in names), (pl.col(n).is_not_null() for n in roles["targets"])
        unknown = [pl.lit(False), *(on.bridged(name, gap) | on.over(name) for name in roles["known"])]
        flags = [pl.any_horizontal(one).alias(str(i)) for i, one in enumerate((blind, unknown, scored))]
        cutter = on.Cutter(grid, self.window, self.horizon, max(self.window, state["season"] or 0), flags)
        arrays, figures, parts = {}, {}, {}
        for split, span in spans.items():
            cut = cutter.cut(*span)
            inside = on.KNOWN & pl.col(TIME).to_physical().is_between(*span, closed="left")
            parts[split] = grid.filter(inside).with_columns(pl.col(TIME).alias(roles["time"]))
            arrays[split] = {name: a[cut.rows] for name, a in rows.items()} | {"starts": cut.starts, "tiles": cut.tiles}
            figures[split] = {"steps": len(parts[split]), "windows": len(cut.starts), "left_out": cut.left_out}
            figures[split]["unmade"] = cut.unmade
            figures[split]["series"] = parts[split][SERIES].n_unique()
            self.check_split(split, figures[split], gap, cleaning, len(spans) == 1)
        columns = [{"name": roles["time"], "kind": "date"}, *({"name": name, "kind": "number"} for name in names)]
        return arrays, figures | describe(parts, columns)

    def check_split(self, split: str, found: dict[str, int], gap: int, cleaning: Cleaning, other: bool) -> None:
        """Note windows that are left out; raise DataError where training or evaluation has none."""
        windows, left_out = found["windows"], found["left_out"]
        if left_out:
            what = f"{left_out:,} of {left_out + windows:,} windows of {split} are left out"
            cleaning.notes.append(f"{what}: no target is known, or they see a hole of over {gap} steps (data.max_gap)")
        if not windows and not other:
            what = f"{split} has {found['steps']} steps, {found['series']} series and no whole window"
            hint = "lower data.window or data.horizon, or move data.val_from, data.test_from or the shares"
            raise DataError(f"{self.named}: {what} -> {hint if not left_out else 'raise data.max_gap'}")
