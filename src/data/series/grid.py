"""Series on a regular grid, with holes where nothing is known; and the windows that can be cut from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from src.data.delimited import ROW
from src.data.report import Cleaning
from src.data.series.roles import numbers
from src.data.series.stamps import SERIES, TIME, day_of_months, step_of
from src.run.errors import DataError

MAX_SPARSE = 20  # rows of the grid for each that is there
END = "\0end"  # the last stamp of a series with a target
FAR = 10  # interquartile ranges beyond the quartiles: outliers
HARMONICS = 3
CYCLES = {"hour": 24, "weekday": 7, "day": 31, "month": 12}
INDEX = pl.int_range(pl.len())
KNOWN = pl.col(TIME) <= pl.col(END)


def on_grid(frame: pl.DataFrame, targets: list[str], freq: str, horizon: int, source: str) -> pl.DataFrame:
    """A row for each step of each series, up to `horizon` steps after its last target; ROW is null where none was read.
    Raises DataError where rows lie too far apart."""
    months, size = step_of(freq)
    if day := months and day_of_months(frame[TIME]):
        frame = frame.with_columns(pl.col(TIME).dt.month_start())
    known = pl.col(TIME).filter(pl.any_horizontal(pl.col(targets).is_not_null()))
    series = frame.group_by(SERIES, maintain_order=True).agg(first=pl.col(TIME).min(), end=known.max())
    series = series.with_columns(pl.col("end").fill_null(pl.col("first")).alias(END))
    if (series[END] - series["first"]).dt.total_microseconds().sum() > MAX_SPARSE * len(frame) * size:
        what = f"{source}: {len(frame):,} rows from {frame[TIME].min()!s} to {frame[TIME].max()!s} are few"
        raise DataError(f"{what} for steps of {freq} -> mend the stamps, or give a longer data.freq")
    last = pl.col(END).dt.offset_by(f"{months * horizon}mo" if months else f"{size * horizon}us")
    steps = series.select(SERIES, END, pl.datetime_ranges("first", last, freq).alias(TIME)).explode(TIME)
    grid = steps.join(frame, on=[SERIES, TIME], how="left", maintain_order="left")
    days = (pl.min_horizontal(c.dt.offset_by(f"{day - 1}d"), c.dt.month_end()) for c in map(pl.col, (TIME, END)))
    return grid.with_columns(days) if day else grid


def without_short(grid: pl.DataFrame, least: int, cleaning: Cleaning, source: str) -> pl.DataFrame:
    """The series with enough steps for a window; others are at fault."""
    known = KNOWN.sum().over(SERIES)
    for name, count in grid.filter(known < least).group_by(SERIES, maintain_order=True).agg(KNOWN.sum()).iter_rows():
        what, hint = f"too short: {count} steps, a window takes {least}", "lower data.window or data.horizon"
        cleaning.skip("", f"{source}, series {name}" if name else source, what, hint)
    cleaning.check()
    return grid.filter(known >= least)


def notable(grid: pl.DataFrame, names: list[str], cleaning: Cleaning) -> dict[str, Any]:
    """How many stamps are lacking between those that are there, and values of each column far beyond its quartiles."""
    runs = grid.select(pl.col(ROW).is_null() & KNOWN).to_series().rle().struct.unnest().filter("value")["len"].to_list()
    if runs:
        what = f"{sum(runs):,} stamps are lacking in {len(runs):,} gaps, the longest of {max(runs):,}"
        cleaning.notes.append(f"{what}: inputs keep the last value, targets are not scored there")
    low, high, x = pl.col(names).quantile(0.25), pl.col(names).quantile(0.75), pl.col(names)
    far = (high > low) & ~x.is_between(low - FAR * (high - low), high + FAR * (high - low))
    outliers = {name: count for name, count in grid.select(far.sum()).row(0, named=True).items() if count}
    if outliers:
        counts = ", ".join(f"{count:,} of {name}" for name, count in outliers.items())
        cleaning.notes.append(f"values beyond {FAR} interquartile ranges stay as they are: {counts}")
    gaps = {"gaps": len(runs), "stamps": sum(runs), "longest": max(runs, default=0)}
    return {"gaps": gaps, "outliers": outliers}


def rows_of(grid: pl.DataFrame, state: dict[str, Any], cycles: Sequence[str]) -> dict[str, np.ndarray]:
    """What Windows has of each row. Holes of inputs have the value before, so that none is known too early."""
    units = zip(*state["inputs"].values(), strict=True)
    scaled = grid.select(SERIES, *(((pl.col(n) - m) / s).cast(pl.Float32) for n, m, s in units))
    filled = scaled.select(pl.exclude(SERIES).forward_fill().over(SERIES).fill_null(0)).to_numpy()
    out = {"values": np.concatenate([filled, *calendar(grid[TIME], cycles)], 1)}
    names = state["targets"]["names"]
    out |= {"targets": scaled.select(names).to_numpy(), "numbers": grid.select(names).to_numpy()}  # as they were, too
    out["series"] = grid[SERIES].rle_id().cast(pl.Int32).to_numpy()
    return out | {"time": grid[TIME].to_physical().to_numpy()}


def calendar(time: pl.Series, cycles: Sequence[str]) -> list[np.ndarray]:
    """Sines and cosines of the hour, the day of the week, the day of the month and the month, so many in one cycle that
    shapes with a few bends can be made of them: for each float32 [T, 2 * HARMONICS]."""
    at = places(time)
    angles = [2 * np.pi * k * at[name].to_numpy() / CYCLES[name] for name in cycles for k in range(1, HARMONICS + 1)]
    return [np.stack([np.sin(angle), np.cos(angle)], 1).astype(np.float32) for angle in angles]


def places(time: pl.Series) -> dict[str, pl.Series]:
    """Where stamps are in each cycle, from 0 on."""
    hour = time.dt.hour() + time.dt.minute() / 60
    return {"hour": hour, "weekday": time.dt.weekday() - 1, "day": time.dt.day() - 1, "month": time.dt.month() - 1}


class Cutter:
    """Finds the windows of the grid by their first rows, and cuts out those of a span of time."""

    def __init__(self, grid: pl.DataFrame, roles: dict[str, Any], window: int, horizon: int, max_gap: int) -> None:
        last = {name: pl.when(pl.col(name).is_not_null()).then(INDEX).forward_fill() for name in numbers(roles)}
        gone = {n: (INDEX - last[n]).over(SERIES).fill_null(max_gap + 1) > max_gap for n in last}  # or never there
        ahead = [gone[name] | ~KNOWN & pl.col(name).is_null() for name in roles["known"]]
        silent = pl.all_horizontal(gone[name] for name in roles["targets"])  # a window may look at one that lives
        unseen = [silent, *(gone[name] for name in (*roles["past"], *roles["known"]))]
        flags = [unseen, [pl.lit(False), *ahead], [pl.col(name).is_not_null() for name in roles["targets"]]]
        found = grid.select(pl.any_horizontal(one).cum_sum().alias(str(i)) for i, one in enumerate(flags))
        rows = grid.select((one & KNOWN).sum().alias(name) for name, one in gone.items()).row(0, named=True)
        self.silent = [f"{name} is silent for over {max_gap} steps in {n:,} rows" for name, n in rows.items() if n]
        blind, unknown, scored = (np.append(0, one.to_numpy()) for one in found.get_columns())
        self.series, self.known = grid[SERIES].rle_id().to_numpy(), grid.select(KNOWN).to_series().to_numpy()
        self.time = grid.select(pl.min_horizontal(TIME, END).to_physical()).to_series().to_numpy()
        first = np.arange(max(0, len(grid) - window - horizon + 1))
        self.first = first[self.series[first] == self.series[first + window + horizon - 1]]
        self.window, self.horizon, (a, b) = window, horizon, (self.first + window, self.first + window + horizon)
        self.usable = (blind[a] == blind[self.first]) & (unknown[b] == unknown[a])
        self.scored = scored[b] > scored[a]

    def cut(self, since: int, until: int, context: int) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, int]]:
        """Rows of the grid, with the context before and what is unknown after; as places in these, `starts` of windows
        whose targets are all in the span, one of them known at least, and of `tiles`, whose forecasts follow each other
        up to the end, and beyond it where the series ends there; and how many there are, and are left out."""
        own = (since <= self.time) & (self.time < until)  # with the steps after a series that ends there
        inside = own[self.first + self.window] & own[self.first + self.window + self.horizon - 1]
        first, usable, scored = (one[inside] for one in (self.first, self.usable, self.scored))
        after = first + self.window
        ends = 1 + np.flatnonzero(own & ~np.append(own[1:] & (self.series[1:] == self.series[:-1]), False))
        is_tile = (ends[np.searchsorted(ends, after, "right")] - after) % self.horizon == 0
        is_past = self.known[after + self.horizon - 1]
        count = np.append(np.cumsum(own), np.full(context, own.sum()))
        rows = np.flatnonzero(own | (count[context:] > count[: len(own)]))
        starts, tiles = first[is_past & usable & scored], first[is_tile & usable]
        left_out = {"windows_left_out": int(is_past.sum()) - len(starts)}
        figures = {"windows": len(starts), **left_out, "forecasts_left_out": int(is_tile.sum()) - len(tiles)}
        return rows, {"starts": np.searchsorted(rows, starts), "tiles": np.searchsorted(rows, tiles)}, figures
