"""Series on a regular grid, with holes where nothing is known; and the windows that can be cut from it."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from datetime import datetime

import numpy as np
import polars as pl

from src.data.report import Cleaning
from src.data.series.stamps import SERIES, TIME, changes, step_of
from src.run.errors import DataError

MAX_SPARSE = 20  # rows of the grid for each that is there
CYCLES = {"hour": 24, "weekday": 7, "day": 31, "month": 12}


@dataclass
class Grid:
    """Rows of all series, one after the other; each has `horizon` rows after the last one with a target."""

    names: list[str]  # of the series [S]
    first: np.ndarray  # the row each begins with [S]
    end: np.ndarray  # the row after its last one with a target [S]
    time: np.ndarray  # microseconds, int64 [T]
    series: np.ndarray  # int32 [T]
    values: np.ndarray  # float64 [T, C], NaN where unknown; the targets first

    def bounds(self) -> Iterator[tuple[int, int]]:
        return zip(self.first.tolist(), self.end.tolist(), strict=True)


@dataclass
class Layout:
    """Where sorted rows lie on the grid."""

    begin: np.ndarray  # the rows in which a series begins [S]
    count: np.ndarray  # how many rows it has [S]
    place: np.ndarray  # how many steps each row lies behind the first one of its series [N]
    ends: np.ndarray  # steps of each series up to its last target [S]

    @classmethod
    def of(cls, frame: pl.DataFrame, targets: list[str], freq: str) -> "Layout":
        begin = np.concatenate([[0], changes(frame[SERIES])]).astype(np.int64)
        count, (months, size), time = np.diff(np.append(begin, len(frame))), step_of(freq), frame[TIME]
        at = time.dt.year().to_numpy() * 12 + time.dt.month().to_numpy() if months else time.to_physical().to_numpy()
        place = (at - np.repeat(at[begin], count)) // (months or size)
        known = frame.select(pl.any_horizontal(pl.col(targets).is_not_null())).to_series().to_numpy()
        return cls(begin, count, place, np.maximum.reduceat(np.where(known, place + 1, 0), begin))


def without_short(
    frame: pl.DataFrame, targets: list[str], freq: str, least: int, cleaning: Cleaning, file: str
) -> pl.DataFrame:
    """Rows of series with enough steps for a window; others are at fault."""
    layout, short = Layout.of(frame, targets, freq), []
    for name, steps in zip(frame[SERIES].gather(layout.begin), layout.ends.tolist(), strict=True):
        if steps < least:
            where = f"{file}, series {name}" if name else file
            what = f"too short: {steps} steps of {freq}, a window takes {least}"
            cleaning.skip("", where, what, "lower data.window or data.horizon")
            short.append(name)
    cleaning.check()
    if len(short) == len(layout.begin):
        raise DataError(f"{file}: {cleaning.skipped[-1].partition(': ')[2]} -> lower data.window or data.horizon")
    return frame.filter(~pl.col(SERIES).is_in(short)) if short else frame


def make_grid(frame: pl.DataFrame, names: list[str], targets: list[str], freq: str, horizon: int, file: str) -> Grid:
    """Sorted rows, no two with one stamp, at their places. Raises DataError where they lie too far apart."""
    layout = Layout.of(frame, targets, freq)
    lengths = layout.ends + horizon
    if lengths.sum() > MAX_SPARSE * (len(frame) + horizon * len(lengths)):
        span = f"from {frame[TIME].min()} to {frame[TIME].max()}"
        what = f"{file}: {len(frame):,} rows {span} are few for a step of {freq}, which makes {lengths.sum():,}"
        raise DataError(f"{what} -> mend the stamps, or give a longer data.freq")
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    series = np.repeat(np.arange(len(first), dtype=np.int32), lengths)
    starts = [frame[TIME][i] for i in layout.begin.tolist()]
    time = np.concatenate([stamps(at, count, freq) for at, count in zip(starts, lengths.tolist(), strict=True)])
    inside = layout.place < np.repeat(lengths, layout.count)  # rows of the far future are of no use
    values = np.full((len(series), len(names)), np.nan)
    place = (layout.place + np.repeat(first, layout.count))[inside]
    for c, name in enumerate(names):
        values[place, c] = frame[name].to_numpy()[inside]
    return Grid(frame[SERIES].gather(layout.begin).to_list(), first, first + layout.ends, time, series, values)


def stamps(start: datetime, count: int, freq: str) -> np.ndarray:
    """So many stamps from the first on, in microseconds; months that begin at the end of one, end so, too."""
    months, size = step_of(freq)
    first = pl.Series([start], dtype=pl.Datetime("us"))
    if not months:
        return first.to_physical()[0] + np.arange(count) * size
    out = first.new_from_index(0, count).dt.offset_by(pl.Series([f"{i * months}mo" for i in range(count)]))
    out = out.dt.month_end() if (first.dt.month_end() == first)[0] else out
    return out.to_physical().to_numpy()


def note_holes(frame: pl.DataFrame, freq: str, cleaning: Cleaning) -> dict[str, int]:
    """How many stamps are lacking between those that are there."""
    layout = Layout.of(frame, [SERIES], freq)
    lacking = np.diff(layout.place, prepend=0) - 1
    lacking[layout.begin] = 0
    found = {"gaps": int((lacking > 0).sum()), "stamps": int(lacking.sum()), "longest": int(lacking.max(initial=0))}
    if found["gaps"]:
        after = frame[TIME][int(lacking.argmax()) - 1]
        what = f"{found['stamps']:,} stamps are lacking in {found['gaps']:,} gaps, at most {found['longest']:,}"
        cleaning.notes.append(f"{what} (after {after}): inputs keep the last value, targets are not scored there")
    return found


def filled(grid: Grid, mean: np.ndarray, std: np.ndarray, max_gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardized values float32 [T, C], holes filled with the value before, so that nothing is known too early; for
    each column [T, C] where it was bridged over more than `max_gap` steps, and where no value comes any more."""
    rows, begin = np.arange(len(grid.time)), grid.first[grid.series]
    stops = np.append(grid.first[1:], len(rows))[grid.series] - 1
    out = np.zeros(grid.values.shape, np.float32)
    bad, over = np.zeros(out.shape, bool), np.zeros(out.shape, bool)
    for c in range(out.shape[1]):
        last = np.maximum.accumulate(np.where(np.isfinite(grid.values[:, c]), rows, -1))  # row of the value before
        there = last >= begin
        out[there, c] = (grid.values[last[there], c] - mean[c]) / std[c]
        bad[:, c] = ~there | (rows - last > max_gap)
        over[:, c] = rows > last[stops]
    return out, bad, over


def calendar(time: pl.Series, cycles: list[str]) -> np.ndarray:
    """Sine and cosine of the hour, the day of the week, the day of the month and the month: float32 [T, 2 * cycles]."""
    hour = time.dt.hour() + time.dt.minute() / 60
    at = {"hour": hour, "weekday": time.dt.weekday() - 1, "day": time.dt.day() - 1, "month": time.dt.month() - 1}
    angles = [2 * np.pi * at[name].to_numpy() / CYCLES[name] for name in cycles]
    parts = [part for angle in angles for part in (np.sin(angle), np.cos(angle))]
    return np.stack(parts, 1).astype(np.float32) if parts else np.zeros((len(time), 0), np.float32)


@dataclass
class Cut:
    """Of a split: rows of the grid; those between its bounds, without the context before and what is unknown after;
    and first rows of windows, as places in `rows`."""

    rows: np.ndarray
    own: np.ndarray
    starts: np.ndarray  # whose targets are all between the bounds, one of them known at least
    tiles: np.ndarray  # whose forecasts follow each other up to the end, and beyond it where the series ends there


@dataclass
class Cutter:
    """Cuts a split's arrays from the grid.

    `blind` [T] marks rows that no window may look at, `unknown` [T] those that none may have in its future.
    """

    grid: Grid
    window: int
    horizon: int
    context: int  # rows before the first target of a split
    blind: np.ndarray
    unknown: np.ndarray
    scored: np.ndarray  # [T], rows with a target

    def __post_init__(self) -> None:
        blind, unknown, scored = (np.concatenate([[0], np.cumsum(a)]) for a in (self.blind, self.unknown, self.scored))
        r = np.arange(len(self.blind) - self.window - self.horizon + 1)
        a, b = r + self.window, r + self.window + self.horizon
        self.usable = (blind[a] == blind[r]) & (unknown[b] == unknown[a])
        self.has_targets = scored[b] > scored[a]

    def cut(self, since: int, until: int) -> tuple["Cut", dict[str, int]]:
        """What has its targets in a span of time, and how much of it there is."""
        parts: list[Cut] = []
        whole = at = 0
        for a, end in self.grid.bounds():
            i, j = a + np.searchsorted(self.grid.time[a:end], (since, until))
            if i == j:
                continue
            begin, earliest = max(a, i - self.context), max(a, i - self.window)
            every = np.arange(earliest, j - self.window - self.horizon + 1)
            whole += len(every)
            starts = every[self.usable[every] & self.has_targets[every]]
            last = j - self.window
            if j < end or last < a or not self.usable[last]:
                last -= self.horizon
            tiles = np.arange(last, earliest - 1, -self.horizon)[::-1]
            rows = np.arange(begin, j + self.horizon * (j == end))
            parts.append(Cut(rows, np.arange(i, j), starts - begin + at, tiles[self.usable[tiles]] - begin + at))
            at += len(rows)
        out = Cut(*(np.concatenate([np.zeros(0, np.int64), *one]) for one in zip(*map(astuple, parts), strict=True)))
        return out, {
            "steps": len(out.own),
            "series": len(parts),
            "windows": len(out.starts),
            "left_out": whole - len(out.starts),
        }


def as_frame(grid: Grid, rows: np.ndarray, names: list[str], time: str) -> pl.DataFrame:
    frame = pl.DataFrame(grid.values[rows], schema=names).fill_nan(None)
    return frame.with_columns(pl.Series(time, grid.time[rows]).cast(pl.Datetime("us")))
