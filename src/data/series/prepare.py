"""From rows as they were read to the arrays of each split."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import polars as pl

from src.data import cache
from src.data.columns import Column
from src.data.frame import describe
from src.data.report import Cleaning
from src.data.series.grid import Cutter, Grid, as_frame, calendar, filled, make_grid, note_holes, without_short
from src.data.series.roles import NUMBERS, Roles, find_roles, fit, note_outliers
from src.data.series.stamps import (
    TIME,
    Clock,
    find_freq,
    has_offsets,
    means,
    on_clock,
    one_each,
    read_clock,
    season_of,
    stamped,
    step_of,
)
from src.run.errors import ConfigError, DataError

EVER = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
Spans = dict[str, tuple[int, int]]  # of each split: its first stamp, and the one after its last, in microseconds


@dataclass(frozen=True)
class Preparation:
    """Prepares what was read, as the options of these names in SeriesDataModule say. `source` is what errors call the
    data.

    Raises:
        ConfigError: an option cannot be.
    """

    file: Path | None
    source: str
    time: str | None
    group: str | None
    targets: list[str] | None
    past: list[str]
    known: list[str]
    window: int
    horizon: int
    val_frac: float
    test_frac: float
    val_from: str | None
    test_from: str | None
    until: str | None
    freq: str | None
    time_zone: str | None
    season: int | None
    calendar: list[str]
    max_gap: int | None

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("horizon", 1), ("season", 1), ("max_gap", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"data.{name}: {value} is less than {least}")
        if not (self.val_frac > 0 and self.test_frac > 0 and self.val_frac + self.test_frac < 1):
            shares = f"{self.val_frac}, {self.test_frac}"
            raise ConfigError(
                f"data.val_frac, data.test_frac: {shares} -> give shares above 0 that leave some to train"
            )
        if (self.val_from is None) != (self.test_from is None):
            raise ConfigError("data.val_from, data.test_from: one of them is given -> give both, or none")
        for name in ("val_from", "test_from", "until"):
            self.moment(name)
        if self.freq:
            step_of(self.freq)
        try:
            ZoneInfo(self.time_zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError) as e:
            raise ConfigError(f"data.time_zone: {self.time_zone} is none -> give one such as Europe/Berlin") from e

    def moment(self, name: str) -> datetime:
        text = getattr(self, name)
        try:
            return datetime.fromisoformat(text or "1970-01-01")
        except ValueError as e:
            raise ConfigError(f"data.{name}: {text} is no date -> write it as 2026-01-31 or 2026-01-31 12:00") from e

    def build(
        self, frame: pl.DataFrame, columns: list[Column], cleaning: Cleaning, state: dict[str, Any]
    ) -> cache.Prepared:
        """The arrays of each split and their figures, with the statistics among them.

        Args:
            state: the statistics of a trained model, for which all is `test`; else empty.
        """
        given = {name: getattr(self, name) for name in ("time", "group", *NUMBERS)}
        roles = state.get("roles") or find_roles(columns, given, cleaning)
        frame, clock, freq = self.regular(frame, columns, roles, cleaning, state.get("freq"))
        least = self.window + (0 if state else self.horizon)
        frame = without_short(frame, roles["targets"], freq, least, cleaning, self.source)
        spans = {"test": EVER} if state else self.spans(frame, roles["targets"], clock)
        state = state or self.fit(frame, spans, columns, roles, freq, cleaning)
        names = state["inputs"]["names"]
        figures = {"freq": freq, "season": state["season"], "gaps": note_holes(frame, freq, cleaning)}
        figures["outliers"] = note_outliers(frame, names, cleaning)
        grid = make_grid(frame, names, roles["targets"], freq, self.horizon, self.source)
        arrays, more = self.split(grid, spans, clock, state, cleaning)
        return arrays, figures | more | {"statistics": {**state, "clock": asdict(clock)}, "series_names": grid.names}

    def regular(
        self, frame: pl.DataFrame, columns: list[Column], roles: Roles, cleaning: Cleaning, trained: str | None
    ) -> tuple[pl.DataFrame, Clock, str]:
        """Rows in order, one for each stamp, all one step apart but for holes; how stamps are kept; and the step."""
        names = [name for option in NUMBERS for name in roles[option]]
        frame = stamped(frame, roles["time"], roles["group"], cleaning, self.source)
        column = next(c for c in columns if c["name"] == roles["time"])
        clock = read_clock(frame, self.time_zone, has_offsets(self.file, column), self.freq)
        frame = on_clock(frame, clock, cleaning, self.source)
        if self.until and not trained:
            frame = frame.filter(pl.col(TIME).to_physical() < clock.moment(self.moment("until")))
        frame = one_each(frame, names, roles["group"] is not None, cleaning, self.source)
        cleaning.check()
        if frame.is_empty():
            raise DataError(f"{self.source}: no row is left -> see data.until, data.invalid")
        freq = self.freq or find_freq(frame, self.source)
        if trained and step_of(freq) != step_of(trained):
            raise DataError(f"{self.source}: the step is {freq}, the model's {trained} -> --data.freq {trained}")
        return (means(frame, names, freq) if self.freq else frame), clock, freq

    def spans(self, frame: pl.DataFrame, targets: list[str], clock: Clock) -> Spans:
        known = frame.filter(pl.any_horizontal(pl.col(targets).is_not_null()))[TIME].sort()
        if known.is_empty():
            raise DataError(f"{self.source}: no target has a value -> see data.targets")
        stamps = known.to_physical()
        if self.val_from:
            val, test = (clock.moment(self.moment(name)) for name in ("val_from", "test_from"))
            if not stamps[0] < val < test <= stamps[-1]:
                what = f"data.val_from, data.test_from: {self.val_from}, {self.test_from} do not part the stamps"
                raise DataError(f"{what} from {known[0]} to {known[-1]} -> take two between them, in order")
        else:
            shares = (1 - self.val_frac - self.test_frac, 1 - self.test_frac)
            val, test = (stamps[int(len(stamps) * share)] for share in shares)
        return {"train": (EVER[0], val), "val": (val, test), "test": (test, EVER[1])}

    def fit(
        self, frame: pl.DataFrame, spans: Spans, columns: list[Column], roles: Roles, freq: str, cleaning: Cleaning
    ) -> dict[str, Any]:
        """The statistics: what is measured on train alone, and what the data are."""
        train = frame.filter(pl.col(TIME).to_physical() < spans["train"][1])
        inputs = fit(train, roles, self.targets is not None, cleaning)
        season = self.season or season_of(freq)
        if season is None:
            cleaning.notes.append(
                f"steps of {freq} have no season of their own: seasonal is the last value (data.season)"
            )
        used = {roles["time"], roles["group"], *inputs["names"]}
        return {
            "targets": {name: values[: len(roles["targets"])] for name, values in inputs.items()},
            "inputs": inputs,
            "columns": [c for c in columns if c["name"] in used],
            "roles": roles,
            "freq": freq,
            "season": season,
        }

    def split(
        self, grid: Grid, spans: Spans, clock: Clock, state: dict[str, Any], cleaning: Cleaning
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        names, roles, out = state["inputs"]["names"], state["roles"], len(state["targets"]["names"])
        mean, std = (np.array(state["inputs"][name]) for name in ("mean", "std"))
        gap = self.max_gap if self.max_gap is not None else state["season"] or self.window
        inputs, blind, over = filled(grid, mean, std, gap)
        local = clock.local(pl.Series(grid.time).cast(pl.Datetime("us")))
        values = np.concatenate([inputs, calendar(local, self.calendar)], 1)
        targets = ((grid.values[:, :out] - mean[:out]) / std[:out]).astype(np.float32)
        unknown = (blind | over)[:, len(names) - len(roles["known"]) :].any(1)
        context = max(self.window, state["season"] or 0)
        scored: np.ndarray = np.isfinite(targets).any(1)
        cutter = Cutter(grid, self.window, self.horizon, context, blind.any(1), unknown, scored)
        arrays, figures, parts = {}, {}, {}
        for split, span in spans.items():
            cut, figures[split] = cutter.cut(*span)
            self.check(split, figures[split], gap, cleaning, bool(state.get("clock")))
            rows = {"values": values, "targets": targets, "series": grid.series, "time": grid.time}
            arrays[split] = {name: a[cut.rows] for name, a in rows.items()} | {"starts": cut.starts, "tiles": cut.tiles}
            parts[split] = as_frame(grid, cut.own, names, roles["time"])
        return arrays, figures | describe(parts, [{"name": roles["time"], "kind": "date"}, *numbers(names)])

    def check(self, split: str, found: dict[str, int], gap: int, cleaning: Cleaning, other: bool) -> None:
        """Note windows that are left out; raise DataError where training or evaluation has none."""
        windows, left_out = found["windows"], found["left_out"]
        if left_out:
            what = f"{left_out:,} of {left_out + windows:,} windows of {split} are left out"
            cleaning.notes.append(f"{what}: no target is known, or they see a hole of over {gap} steps (data.max_gap)")
        if not windows and not other:
            what = f"{split} has {found['steps']} steps, {found['series']} series and no whole window"
            hint = "lower data.window or data.horizon, or move data.val_from, data.test_from or the shares"
            raise DataError(f"{self.source}: {what} -> {hint if not left_out else 'raise data.max_gap'}")


def numbers(names: list[str]) -> list[Column]:
    return [{"name": name, "kind": "number"} for name in names]
