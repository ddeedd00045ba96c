"""Series on a regular grid, with holes where nothing is known; and the windows that can be cut from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from src.data.delimited import ROW
from src.data.report import Cleaning
from src.data.series.stamps import DAY, SERIES, TIME, step_of
from src.run.errors import DataError

MAX_SPARSE = 20  # rows of the grid for each that is there
END = "\0end"  # the last stamp of a series with a target
HARMONICS = 3
CYCLES = {"hour": 24, "weekday": 7, "day": 31, "month": 12}
INDEX = pl.int_range(pl.len())
KNOWN = pl.col(TIME) <= pl.col(END)


def on_grid(frame: pl.DataFrame, targets: list[str], freq: str, horizon: int, source: str) -> pl.DataFrame:
    """A row for each step of each series, up to `horizon` steps after its last target; ROW is null where none was read.
    Raises DataError where rows lie too far apart."""
    months, size = step_of(freq)
    last = pl.col(END).dt.offset_by(f"{months * horizon}mo" if months else f"{size * horizon}us")
    found = pl.col(TIME).filter(pl.any_horizontal(pl.col(targets).is_not_null())).max()
    frame = frame.with_columns(found.over(SERIES).fill_null(pl.col(TIME).min().over(SERIES)).alias(END))
    frame = frame.filter(pl.col(TIME) <= last)
    tails = frame.group_by(SERIES, maintain_order=True).agg(pl.col(END).first(), first=pl.col(TIME).first())
    steps = (tails[END] - tails["first"]).dt.total_microseconds().sum() / (size or months * 28 * DAY)
    if steps > MAX_SPARSE * len(frame):
        span = "from {} to {}".format(*frame.select(pl.col(TIME).min(), last=pl.col(TIME).max()).row(0))
        what = f"{source}: {len(frame):,} rows {span} are few for steps of {freq}"
        raise DataError(f"{what} -> mend the stamps, or give a longer data.freq")
    tails = tails.select(SERIES, END, last.alias(TIME)).join(frame, on=[SERIES, TIME], how="anti")
    whole = pl.concat([frame, tails], how="diagonal").sort(SERIES, TIME)
    return whole.upsample(TIME, every=freq, group_by=SERIES, maintain_order=True).with_columns(
        pl.col(END).forward_fill()
    )


def without_short(grid: pl.DataFrame, least: int, cleaning: Cleaning, source: str) -> pl.DataFrame:
    """The series with enough steps for a window; others are at fault."""
    steps = grid.group_by(SERIES, maintain_order=True).agg(KNOWN.sum())
    short = steps.filter(pl.col(TIME) < least)
    for name, count in short.iter_rows():
        where, hint = f"{source}, series {name}" if name else source, "lower data.window or data.horizon"
        if len(short) == len(steps):
            raise DataError(f"{where}: too short: {count} steps, a window takes {least} -> {hint}")
        cleaning.skip("", where, f"too short: {count} steps, a window takes {least}", hint)
    cleaning.check()
    return grid.filter(~pl.col(SERIES).is_in(short[SERIES].to_list())) if len(short) else grid


def note_holes(grid: pl.DataFrame, cleaning: Cleaning) -> dict[str, int]:
    """How many stamps are lacking between those that are there."""
    runs = grid.select(pl.col(ROW).is_null() & KNOWN).to_series().rle().struct.unnest().filter("value")["len"].to_list()
    if len(runs):
        what = f"{sum(runs):,} stamps are lacking in {len(runs):,} gaps, the longest of {max(runs):,}"
        cleaning.notes.append(f"{what}: inputs keep the last value, targets are not scored there")
    return {"gaps": len(runs), "stamps": sum(runs), "longest": max(runs, default=0)}


def filled(names: list[str], mean: list[float], std: list[float]) -> list[pl.Expr]:
    """Standardized columns, their holes filled with the value before, so that nothing is known too early."""
    units = zip(names, mean, std, strict=True)
    return [((pl.col(n).forward_fill().over(SERIES) - m) / s).fill_null(0).cast(pl.Float32) for n, m, s in units]


def bridged(name: str, max_gap: int) -> pl.Expr:
    """Where a column was filled over more than so many steps, or there is no value before."""
    last = pl.when(pl.col(name).is_not_null()).then(INDEX)
    return (INDEX - last.forward_fill()).over(SERIES).fill_null(max_gap + 1) > max_gap


def over(name: str) -> pl.Expr:
    """Where no value of a column comes any more."""
    last = pl.when(pl.col(name).is_not_null()).then(INDEX).max()
    return (last < INDEX).over(SERIES).fill_null(True)


def calendar(time: pl.Series, cycles: Sequence[str]) -> np.ndarray:
    """Sines and cosines of the hour, the day of the week, the day of the month and the month, so many in one cycle that
    shapes with a few bends can be made of them: float32 [T, 2 * HARMONICS * cycles]."""
    hour = time.dt.hour() + time.dt.minute() / 60
    at = {"hour": hour, "weekday": time.dt.weekday() - 1, "day": time.dt.day() - 1, "month": time.dt.month() - 1}
    waves = range(1, HARMONICS + 1)
    angles = [2 * np.pi * k * at[name].to_numpy() / CYCLES[name] for name in cycles for k in waves]
    parts = [part for angle in angles for part in (np.sin(angle), np.cos(angle))]
    return np.stack(parts, 1).astype(np.float32) if parts else np.zeros((len(time), 0), np.float32)


class Piece(NamedTuple):
    """Of a split: rows of the grid, with the context before and what is unknown after; and first rows of windows, as
    places in these."""

    rows: np.ndarray
    starts: np.ndarray  # whose targets are all in the split, one of them known at least
    tiles: np.ndarray  # whose forecasts follow each other up to the end, and beyond it where the series ends there
    left_out: int = 0  # windows
    unmade: int = 0  # tiles


class Cutter:
    """Cuts splits from the grid.

    Args:
        context: rows before the first target of a split.
        flags: of rows that no window may look at, rows that none may have in its future, and rows with a target.
    """

    def __init__(self, grid: pl.DataFrame, window: int, horizon: int, context: int, flags: list[pl.Expr]) -> None:
        self.window, self.horizon, self.context = window, horizon, context
        self.time = grid[TIME].to_physical().to_numpy()
        series = grid.group_by(SERIES, maintain_order=True).agg(pl.len(), KNOWN.sum().alias("known"))
        first = np.cumsum(series["len"]) - series["len"].to_numpy()
        self.bounds = list(zip(first.tolist(), (first + series["known"].to_numpy()).tolist(), strict=True))
        counts = [np.concatenate([[0], np.cumsum(one)]) for one in grid.select(*flags).get_columns()]
        r = np.arange(len(grid) - window - horizon + 1)
        blind, unknown, scored = counts
        a, b = r + window, r + window + horizon
        self.usable = (blind[a] == blind[r]) & (unknown[b] == unknown[a])
        self.scored = scored[b] > scored[a]

    def cut(self, since: int, until: int) -> Piece:
        """What has its targets in a span of time."""
        none = np.zeros(0, np.int64)
        parts, at = [Piece(none, none, none)], 0
        for a, end in self.bounds:
            i, j = a + np.searchsorted(self.time[a:end], (since, until))
            if i < j:
                parts.append(self.of_series(a, end, i, j, at))
                at += len(parts[-1].rows)
        rows, starts, tiles, left_out, unmade = zip(*parts, strict=True)
        joined = (np.concatenate(rows), np.concatenate(starts), np.concatenate(tiles))
        return Piece(*joined, sum(left_out), sum(unmade))

    def of_series(self, a: int, end: int, i: int, j: int, at: int) -> Piece:
        """Of the series in rows a to end, those from i to j, which come to lie at `at`."""
        begin, earliest, last = max(a, i - self.context), max(a, i - self.window), j - self.window
        every = np.arange(earliest, last - self.horizon + 1)
        starts = every[self.usable[every] & self.scored[every]]
        no_future = j == end and not self.usable[last]
        tiles = np.arange(last - self.horizon * (j < end or no_future), earliest - 1, -self.horizon)[::-1]
        usable, moved = self.usable[tiles], at - begin
        rows = np.arange(begin, j + self.horizon * (j == end))
        unmade = int(no_future) + int((~usable).sum())
        return Piece(rows, starts + moved, tiles[usable] + moved, len(every) - len(starts), unmade)
