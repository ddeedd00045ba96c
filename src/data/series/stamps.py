"""Rows with stamps, as they come, made rows in order of time with one step between them."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from src.data.columns import Column
from src.data.delimited import ROW
from src.data.report import Cleaning
from src.run.errors import ConfigError, DataError

TIME, SERIES = "\0time", "\0series"  # columns besides ROW and the values
UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1}  # microseconds
DAY = UNITS["d"]
MIXED_RUN = 12  # so many other steps in a row, all alike, are no holes
MANY_FRAC = 0.25  # of rows with another's stamp: these are several series


def step_of(freq: str) -> tuple[int, int]:
    """Months and microseconds of a duration in polars' words, of which one is 0."""
    start = pl.Series([datetime(1970, 1, 1)], dtype=pl.Datetime("us"))
    try:
        after = start.dt.offset_by(freq)[0]
    except pl.exceptions.PolarsError as e:
        raise ConfigError(f"data.freq: {freq} is no duration -> give one such as 15m, 1h, 1d, 1w, 1mo or 1q") from e
    months = (after.year - 1970) * 12 + after.month - 1 if re.search("mo|q|y", freq) else 0
    size = 0 if months else (after - start[0]) // timedelta(microseconds=1)
    if max(months, size) < 1:
        raise ConfigError(f"data.freq: {freq} is not longer than nothing -> give one such as 15m, 1h, 1d or 1mo")
    return months, size


def duration(size: int) -> str:
    """Microseconds in polars' words."""
    unit = next(unit for unit, one in UNITS.items() if size % one == 0)
    return f"{size // UNITS[unit]}{unit}"


def season_of(freq: str) -> int | None:
    """Steps of a day, for days of a week, for months of a year; None where they do not fill one."""
    months, size = step_of(freq)
    if months:
        return 12 // months if 12 % months == 0 and months < 12 else None
    return 7 if size == DAY else DAY // size if size < DAY and DAY % size == 0 else None


def stamped(frame: pl.DataFrame, time: str, group: str | None, cleaning: Cleaning, file: str) -> pl.DataFrame:
    """Rows that have a stamp and a series, with both in columns of their own; a file that goes back in time is turned
    round."""
    series = pl.lit("") if group is None else pl.col(group)
    if group and frame[group].dtype.is_float():
        series = series.cast(pl.Int64, strict=False)
    frame = frame.with_columns(pl.col(time).cast(pl.Datetime("us")).alias(TIME), series.cast(pl.String).alias(SERIES))
    for column, name in ((TIME, time), (SERIES, group)):
        for row in frame.filter(pl.col(column).is_null())[ROW]:
            cleaning.skip("", row_of(file, row), f"empty: column {name}", "fill it in")
    frame = frame.drop_nulls([TIME, SERIES])
    steps = frame.select(pl.col(TIME).diff().over(SERIES)).to_series().drop_nulls().dt.total_microseconds()
    back = int((steps < 0).sum())
    if back > len(steps) / 2:
        return frame.reverse()
    if back:
        cleaning.notes.append(f"{back:,} rows come after later ones: sorted by {time}")
    return frame


def has_offsets(file: Path | None, column: Column) -> bool:
    """Whether stamps are UTC because they told how far they are from it."""
    if file and file.suffix.lower() in (".parquet", ".pq"):
        return getattr(pl.read_parquet_schema(file)[column["name"]], "time_zone", None) is not None
    return column.get("format", "").endswith("z")


def row_of(file: str, row: int) -> str:
    return f"{file}, row {row}" if file else f"row {row}"


def commonest_step(frame: pl.DataFrame) -> int:
    """Microseconds that most neighbours of a series are apart; 0 where each has one stamp."""
    steps = frame.sort(SERIES, TIME).select(pl.col(TIME).diff().over(SERIES)).to_series().dt.total_microseconds()
    return most(steps.filter(steps > 0).to_numpy())


def most(steps: np.ndarray) -> int:
    found, counts = np.unique(steps, return_counts=True)
    return int(found[counts.argmax()]) if len(found) else 0


@dataclass(frozen=True)
class Clock:
    """How stamps are kept: in UTC where steps are parts of a day, so that no hour comes twice or is lacking; by the
    clock of the zone where steps are days or more; without a zone as they stand."""

    zone: str | None
    is_utc: bool  # as they are read: they had offsets
    by_day: bool

    def kept(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows with the stamps that are kept; null where the clock skips one."""
        if self.zone is None or self.is_utc != self.by_day:
            return frame
        if self.by_day:
            return frame.with_columns(self.local(frame[TIME], "UTC").dt.replace_time_zone(None))
        told = pl.int_range(pl.len()).over(SERIES, TIME)  # the hour that comes twice, by its order in the file
        which = pl.when(told == 0).then(pl.lit("earliest")).otherwise(pl.lit("latest"))
        zoned = pl.col(TIME).dt.replace_time_zone(self.zone, ambiguous=which, non_existent="null")
        return frame.with_columns(zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None))

    def local(self, time: pl.Series, kept_in: str | None = None) -> pl.Series:
        """Stamps that are kept, as people there tell them; in UTC where they had offsets and no zone is known."""
        kept_in = kept_in or (None if self.by_day or not (self.zone or self.is_utc) else "UTC")
        return time.dt.replace_time_zone(kept_in).dt.convert_time_zone(self.zone or "UTC") if kept_in else time

    def moment(self, at: datetime) -> int:
        """Microseconds, as kept, of a stamp that someone wrote down."""
        if at.tzinfo is None and self.zone and not self.by_day:
            at = at.replace(tzinfo=ZoneInfo(self.zone))
        at = at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
        return int(np.datetime64(at, "us").astype(np.int64))


def read_clock(frame: pl.DataFrame, zone: str | None, is_utc: bool, freq: str | None) -> Clock:
    months, size = step_of(freq) if freq else (0, commonest_step(frame))
    return Clock(zone, is_utc, bool(months) or size >= DAY)


def on_clock(frame: pl.DataFrame, clock: Clock, cleaning: Cleaning, file: str) -> pl.DataFrame:
    kept = clock.kept(frame)
    for row, stamp in frame.filter(kept[TIME].is_null()).select(ROW, TIME).iter_rows():
        what = f"no such hour: the clocks of {clock.zone} skip {stamp}"
        cleaning.skip("", row_of(file, row), what, "mend it, or data.time_zone")
    return kept.drop_nulls(TIME)


def one_each(frame: pl.DataFrame, names: list[str], grouped: bool, cleaning: Cleaning, file: str) -> pl.DataFrame:
    """Sorted rows, one for each stamp of a series: equal ones are left out, others that share one are at fault."""
    frame = frame.sort(SERIES, TIME, maintain_order=True)
    again = pl.all_horizontal(pl.col(c).eq_missing(pl.col(c).shift()) for c in (SERIES, TIME))
    equal = pl.all_horizontal(pl.col(c).eq_missing(pl.col(c).shift()) for c in names)
    frame = frame.with_columns(again.alias("\0again"), equal.alias("\0equal"), pl.col(ROW).shift().alias("\0before"))
    shared = frame.filter("\0again")
    unlike = shared.filter(~pl.col("\0equal"))
    if not grouped and len(unlike) > MANY_FRAC * len(frame):
        before, row = unlike.row(0, named=True)["\0before"], unlike[ROW][0]
        what = f"{file}: {len(unlike):,} of {len(frame):,} rows have the stamp of another, as rows {before} and {row}"
        raise DataError(f"{what} -> name the column that tells series apart: data.group")
    for row, stamp, is_equal, before in shared.select(ROW, TIME, "\0equal", "\0before").iter_rows():
        if is_equal:
            cleaning.remove("", row_of(file, row), "duplicate", f"row {before}")
        else:
            hint = "mend it, or name what tells series apart with data.group, or if clocks went back data.time_zone"
            cleaning.skip("", row_of(file, row), f"a stamp twice: {stamp}, also in row {before}", hint)
    return frame.filter(~pl.col("\0again")).drop("\0again", "\0equal", "\0before")


def find_freq(frame: pl.DataFrame, file: str) -> str:
    """The step between the stamps of sorted rows; raises DataError where they have none, or several."""
    time, unit = frame[TIME], ""
    size = commonest_step(frame)
    if not size:
        raise DataError(f"{file}: {len(frame):,} rows, of which no two are of one series -> give more")
    at = time.to_physical().to_numpy()
    if size >= 28 * DAY and (time.dt.day().n_unique() == 1 or (time.dt.month_end() == time).all()):
        at, unit = time.dt.year().to_numpy() * 12 + time.dt.month().to_numpy(), "mo"
    pieces, begin = np.split(at, changes(frame[SERIES])), 0
    steps = [np.diff(piece) for piece in pieces]
    size = most(np.concatenate(steps))
    for found in steps:
        if (other := other_step(found, size)) is not None:
            words = [f"{n}mo" if unit else duration(int(n)) for n in (size, found[other])]
            what = f"the stamps are most often {words[0]} apart, after {time[begin + other]} {words[1]}"
            raise DataError(f"{file}: {what} -> bring all to one step, by means: --data.freq {words[0]}")
        begin += len(found) + 1
    return f"{size}mo" if unit else duration(size)


def other_step(steps: np.ndarray, size: int) -> int | None:
    """Where stamps leave the grid, or begin to have another step."""
    off = np.flatnonzero(steps % size)
    if len(off) or not len(steps):
        return int(off[0]) if len(off) else None
    ends = np.flatnonzero(np.diff(steps, append=-1))  # of runs of equal steps
    starts = np.concatenate([[0], ends[:-1] + 1])
    long = (ends - starts + 1 >= MIXED_RUN) & (steps[starts] != size)
    return int(starts[long.argmax()]) if long.any() else None


def changes(series: pl.Series) -> np.ndarray:
    """The rows where another series begins, but for the first."""
    return np.flatnonzero((series != series.shift()).fill_null(False).to_numpy())


def means(frame: pl.DataFrame, names: list[str], freq: str) -> pl.DataFrame:
    """The mean of each step of a series."""
    grouped = frame.with_columns(pl.col(TIME).dt.truncate(freq)).group_by(SERIES, TIME, maintain_order=True)
    return grouped.agg(pl.col(names).mean(), pl.col(ROW).first())
