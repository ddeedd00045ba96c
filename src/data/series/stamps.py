"""Rows with stamps, as they come, made rows in order of time with one step between them."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from src.data.delimited import ROW
from src.data.report import Cleaning
from src.run.errors import ConfigError, DataError

TIME, SERIES = "\0time", "\0series"  # columns besides ROW and the values
UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1}  # microseconds
DAY = UNITS["d"]
MIXED_RUN = 12  # so many other steps in a row, all alike, are no holes
BACKWARD_FRAC = 0.9  # of steps that go back in time: the file begins at its end
MANY_FRAC = 0.25  # of rows with another's stamp: these are several series


def step_of(freq: str) -> tuple[int, int]:
    """Months and microseconds of a duration in polars' words, of which one is 0."""
    start = pl.Series([datetime(1970, 1, 1)], dtype=pl.Datetime("us"))
    try:
        after = start.dt.offset_by(freq)[0]
    except pl.exceptions.PolarsError:
        after = start[0]
    months = (after.year - 1970) * 12 + after.month - 1 if re.search("mo|q|y", freq) else 0
    size = 0 if months else (after - start[0]) // timedelta(microseconds=1)
    if max(months, size) < 1:
        raise ConfigError(f"data.freq: {freq} is no step -> give one such as 15m, 1h, 1d, 1w, 1mo or 1q")
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


def stamped(frame: pl.DataFrame, time: str, group: str | None, cleaning: Cleaning, source: str) -> pl.DataFrame:
    """Rows that have a stamp and a series, with both in columns of their own; a file that goes back in time is turned
    round."""
    series = pl.lit("") if group is None else pl.col(group).cast(pl.String).str.strip_suffix(".0")
    frame = frame.with_columns(pl.col(time).alias(TIME), series.alias(SERIES))
    for column, name in ((TIME, time), (SERIES, group)):
        for row in frame.filter(pl.col(column).is_null())[ROW]:
            cleaning.skip("", f"{source}, row {row}", f"empty: column {name}", "fill it in")
    frame = frame.drop_nulls([TIME, SERIES])
    back = int((frame.select(pl.col(TIME).diff().over(SERIES)).to_series() < timedelta(0)).sum())
    if back > BACKWARD_FRAC * len(frame):
        return frame.reverse()
    if back:
        cleaning.notes.append(f"{back:,} rows come after later ones: sorted by {time}")
    return frame


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
    clock of the zone where steps are days or more; without a zone as they stand. Ends of months as their first day."""

    zone: str | None
    is_utc: bool  # as they are read, because they had offsets
    by_day: bool
    month_end: bool

    @classmethod
    def of(cls, frame: pl.DataFrame, zone: str | None, is_utc: bool, freq: str | None) -> "Clock":
        months, size = step_of(freq) if freq else (0, commonest_step(frame))
        month_end = size >= 28 * DAY and (frame[TIME].dt.month_end() == frame[TIME]).all()
        return cls(zone, is_utc, bool(months) or size >= DAY, month_end)

    def keep(self, frame: pl.DataFrame, cleaning: Cleaning, source: str) -> pl.DataFrame:
        """Rows with the stamps that are kept, but for those that the clock skips."""
        if self.month_end:
            return frame.with_columns(pl.col(TIME).dt.month_start())
        if self.zone is None or self.is_utc != self.by_day:
            return frame
        if self.by_day:
            return frame.with_columns(self.local(frame[TIME], "UTC").dt.replace_time_zone(None))
        told = pl.int_range(pl.len()).over(SERIES, TIME)  # the hour that comes twice, by its order in the file
        which = pl.when(told == 0).then(pl.lit("earliest")).otherwise(pl.lit("latest"))
        zoned = pl.col(TIME).dt.replace_time_zone(self.zone, ambiguous=which, non_existent="null")
        kept = frame.with_columns(zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None))
        for row, stamp in frame.filter(kept[TIME].is_null()).select(ROW, TIME).iter_rows():
            what = f"no such hour: the clocks of {self.zone} skip {stamp}"
            cleaning.skip("", f"{source}, row {row}", what, "mend it, or data.time_zone")
        return kept.drop_nulls(TIME)

    def local(self, time: pl.Series, kept_in: str | None = None) -> pl.Series:
        """Stamps that are kept, as people there tell them; in UTC where they had offsets and no zone is known."""
        kept_in = kept_in or (None if self.by_day or not (self.zone or self.is_utc) else "UTC")
        time = time.dt.replace_time_zone(kept_in).dt.convert_time_zone(self.zone or "UTC") if kept_in else time
        return time.dt.month_end() if self.month_end else time

    def told(self, time: pl.Series) -> list[str]:
        """Stamps that are kept, as ISO 8601 writes them; days alone where all begin one."""
        local = self.local(time)
        if self.by_day and (local.dt.truncate("1d") == local).all():
            return local.dt.to_string("%Y-%m-%d").to_list()
        offset = "%:z" if isinstance(local.dtype, pl.Datetime) and local.dtype.time_zone else ""
        return local.dt.to_string(f"%Y-%m-%dT%H:%M:%S%.f{offset}").to_list()

    def moment(self, at: datetime) -> int:
        """Microseconds, as kept, of a stamp that someone wrote down."""
        if at.tzinfo is None and self.zone and not self.by_day:
            at = at.replace(tzinfo=ZoneInfo(self.zone))
        at = at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
        return int(np.datetime64(at, "us").astype(np.int64))


def one_each(frame: pl.DataFrame, names: list[str], grouped: bool, cleaning: Cleaning, source: str) -> pl.DataFrame:
    """Sorted rows, one for each stamp of a series: equal ones are left out, others that share one are at fault."""
    frame = frame.sort(SERIES, TIME, maintain_order=True)
    equal = [pl.all_horizontal(pl.col(c).eq_missing(pl.col(c).shift()) for c in cs) for cs in ((SERIES, TIME), names)]
    frame = frame.with_columns(pl.col(ROW).shift().alias("before"), again=equal[0], equal=equal[1])
    shared = frame.filter("again").select(ROW, TIME, "equal", "before")
    unlike = shared.filter(~pl.col("equal"))
    if not grouped and len(unlike) > MANY_FRAC * len(frame):
        rows = "rows {} and {}".format(*unlike.select("before", ROW).row(0))
        what = f"{source}: {len(unlike):,} of {len(frame):,} rows have the stamp of another, as {rows}"
        raise DataError(f"{what} -> name the column that tells series apart: data.group")
    for row, stamp, is_equal, before in shared.iter_rows():
        if is_equal:
            cleaning.remove("", f"{source}, row {row}", "duplicate", f"row {before}")
        else:
            hint = "mend it, or name what tells series apart with data.group, or if clocks went back data.time_zone"
            cleaning.skip("", f"{source}, row {row}", f"a stamp twice: {stamp}, also in row {before}", hint)
    return frame.filter(~pl.col("again")).drop("again", "equal", "before")


def find_freq(frame: pl.DataFrame, source: str) -> str:
    """The step between the stamps of sorted rows; raises DataError where they have none, or several."""
    time, unit, size = frame[TIME], "", commonest_step(frame)
    if not size:
        raise DataError(f"{source}: {len(frame):,} rows, of which no two are of one series -> give more")
    at = time.to_physical().to_numpy()
    if size >= 28 * DAY and time.dt.day().n_unique() == 1:
        at, unit = time.dt.year().to_numpy() * 12 + time.dt.month().to_numpy(), "mo"
    pieces, begin = np.split(at, np.flatnonzero((frame[SERIES] != frame[SERIES].shift()).fill_null(False))), 0
    steps = [np.diff(piece) for piece in pieces]
    size = most(np.concatenate(steps))
    for found in steps:
        if (other := other_step(found, size)) is not None:
            words = [f"{n}mo" if unit else duration(int(n)) for n in (size, found[other])]
            what = f"the stamps are most often {words[0]} apart, after {time[begin + other]} {words[1]}"
            raise DataError(f"{source}: {what} -> bring all to one step, by means: --data.freq {words[0]}")
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


def means(frame: pl.DataFrame, names: list[str], freq: str) -> pl.DataFrame:
    """The mean of each step of a series."""
    grouped = frame.with_columns(pl.col(TIME).dt.truncate(freq)).group_by(SERIES, TIME, maintain_order=True)
    return grouped.agg(pl.col(names).mean(), pl.col(ROW).first())
