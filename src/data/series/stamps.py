"""Rows with stamps, as they come, made rows in order of time with one step between them."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl

from src.data import cells
from src.data.delimited import ROW, Format
from src.data.report import Cleaning
from src.data.series.roles import Plain
from src.run.errors import ConfigError, DataError

TIME, SERIES = "\0time", "\0series"  # columns besides ROW and the values
DAY, MONTH = 86_400_000_000, 28 * 86_400_000_000  # microseconds; of a month the least
STEPS = {"d": (0, DAY), "h": (0, DAY // 24), "m": (0, DAY // 1440), "s": (0, 10**6), "ms": (0, 10**3), "us": (0, 1)}
STEPS |= {"w": (0, 7 * DAY), "mo": (1, MONTH), "q": (3, 3 * MONTH), "y": (12, 12 * MONTH)}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIXED_RUN = 12  # so many other steps in a row, all alike, are no holes
MONTHS = pl.col(TIME).dt.year().cast(pl.Int64) * 12 + pl.col(TIME).dt.month()
BACKWARD_FRAC = 0.9  # of steps that go back in time: the file begins at its end


def step_of(freq: str) -> tuple[int, int]:
    """Months, 0 where it has none, and the least microseconds of a step."""
    found = re.fullmatch(r"(0*[1-9]\d*)([a-z]+)", freq)
    if not found or found[2] not in STEPS:
        raise ConfigError(f"data.freq: {freq} is no step -> give one such as 15m, 1h, 1d, 1w, 1mo or 1q")
    months, size = STEPS[found[2]]
    return int(found[1]) * months, int(found[1]) * size


def season_of(freq: str) -> int | None:
    """Steps of a day, for days of a week, for months of a year; None where they do not fill one."""
    months, size = step_of(freq)
    whole, part = (12, months) if months else (DAY, size)
    return 7 if size == DAY else whole // part if part < whole and whole % part == 0 else None


def stamped(
    frame: pl.DataFrame, roles: Plain, zone: str | None, own: str | None, cleaning: Cleaning, source: str
) -> pl.DataFrame:
    """Rows that have a stamp and a series, with both in columns of their own; stamps have a zone where one is known."""
    time, group = roles["time"], roles["group"]
    series = pl.lit("") if group is None else cells.as_text(frame[group], Format())
    frame = frame.with_columns(pl.col(time).alias(TIME), series.alias(SERIES))
    if (steps(frame) < 0).sum() > BACKWARD_FRAC * len(frame):
        frame = frame.reverse()
    if own:
        frame = frame.with_columns(pl.col(TIME).dt.replace_time_zone("UTC").dt.convert_time_zone(zone or own))
    elif zone:  # an hour that comes twice is told by its order in the file
        is_first = pl.int_range(pl.len()).over(SERIES, TIME) == 0
        which = pl.when(is_first).then(pl.lit("earliest")).otherwise(pl.lit("latest"))
        frame = frame.with_columns(pl.col(TIME).dt.replace_time_zone(zone, ambiguous=which, non_existent="null"))
    what = f"no stamp: column {time} is empty" + (f", or tells an hour that the clocks of {zone} skip" if zone else "")
    for column, reason in ((TIME, what), (SERIES, f"no series: column {group} is empty")):
        for row in frame.filter(pl.col(column).is_null())[ROW]:
            cleaning.skip("", f"{source}, row {row}", reason, "mend it")
    return frame.drop_nulls([TIME, SERIES])


def one_each(frame: pl.DataFrame, names: list[str], cleaning: Cleaning, source: str) -> pl.DataFrame:
    """Sorted rows, one for each stamp of a series: equal ones are left out, others that share one are at fault."""
    frame = frame.sort(SERIES, TIME, maintain_order=True)
    again, equal = ([pl.col(c).eq_missing(pl.col(c).shift()) for c in cs] for cs in ((SERIES, TIME), names))
    twice = frame.select(pl.all_horizontal(again)).to_series()
    found = frame.select(ROW, TIME, before=pl.col(ROW).shift(), equal=pl.all_horizontal(equal)).filter(twice)
    for row, stamp, before, is_equal in found.iter_rows():
        if is_equal:
            cleaning.remove("", f"{source}, row {row}", "duplicate", f"row {before}")
        else:
            hint = "mend it, or name what tells series apart with data.group, or if clocks went back data.time_zone"
            cleaning.skip("", f"{source}, row {row}", f"a stamp twice: {stamp}, also in row {before}", hint)
    cleaning.check()
    return frame.filter(~twice).select(SERIES, TIME, ROW, *names)


def regular(
    frame: pl.DataFrame, names: list[str], freq: str | None, zone: str | None, source: str
) -> tuple[pl.DataFrame, str]:
    """Sorted rows with one step between them but for holes, by means where it is given and they have another; and the
    step. Days and more go by the clocks of the zone, which they then need no more."""
    if max(commonest(steps(frame)), step_of(freq)[1] if freq else 0) >= DAY:
        if not zone and zone_of(frame.schema) == "UTC" and (frame[TIME].dt.truncate("1d") != frame[TIME]).any():
            what = f"{source}: steps of days, and stamps with offsets as {frame[TIME][0]}: where does a day begin?"
            raise DataError(f"{what} -> give data.time_zone, such as Europe/Berlin or UTC")
        frame = frame.with_columns(pl.col(TIME).dt.replace_time_zone(None))
    if freq is None:
        return frame, find_freq(frame, source)
    months, size = step_of(freq)
    apart = steps(frame, MONTHS) % months if months else steps(frame) % size
    if (apart == 0).all() and (not months or day_of_months(frame[TIME])):
        return frame, freq  # stamps stay, also where a week begins on a Sunday
    groups = frame.group_by(SERIES, pl.col(TIME).dt.truncate(freq), maintain_order=True)
    return groups.agg(pl.col(names).mean(), pl.col(ROW).first()), freq


def steps(frame: pl.DataFrame, at: pl.Expr | None = None) -> pl.Series:
    """How far each row is from the one before of its series, by default in microseconds; null for the first one."""
    at = pl.col(TIME).to_physical() if at is None else at
    return frame.select(at.diff().over(SERIES)).to_series()


def commonest(steps: pl.Series) -> int:
    return int(steps.filter(steps > 0).mode().min() or 0)  # type: ignore[arg-type]


def day_of_months(time: pl.Series) -> int:
    """The day that all stamps have, or in shorter months the last one; 0 where they have several."""
    day = 31 if (time.dt.month_end() == time).all() else int(time.dt.day().max() or 0)  # type: ignore[arg-type]
    is_same = (time.dt.day() == time.dt.days_in_month().clip(upper_bound=day)).all()
    return day if is_same and time.dt.time().n_unique() == 1 else 0


def find_freq(frame: pl.DataFrame, source: str) -> str:
    """The step between the stamps of sorted rows; raises DataError where they have none, or several."""
    time, found, unit = frame[TIME], steps(frame), ""
    if commonest(found) >= MONTH and day_of_months(time):
        found, unit = steps(frame, MONTHS), "mo"
    size = commonest(found)
    if not size:
        raise DataError(f"{source}: {len(frame):,} rows, of which no two are of one series -> give more")
    runs = found.rle().struct.unnest().with_columns(pl.col("len").cum_sum().alias("end"))
    other = runs.filter((pl.col("value") % size != 0) | (pl.col("value") != size) & (pl.col("len") >= MIXED_RUN))
    if len(other):
        count, step, end = other.row(0)
        what = f"most often {words(size, unit)} apart, after {time[end - count - 1]} {words(step, unit)}"
        longer = max(size, step) if step % size == 0 else size
        hint = f"take means with --data.freq {'1mo' if MONTH <= longer <= 31 * DAY else words(longer, unit)}"
        raise DataError(f"{source}: the stamps are {what} -> {hint}")
    return words(size, unit)


def words(size: int, unit: str) -> str:
    """So many of a unit, by default of the largest that divides these microseconds."""
    unit, one = (unit, 1) if unit else next((u, one) for u, (_, one) in STEPS.items() if size % one == 0)
    return f"{size // one}{unit}"


def zone_of(schema: pl.Schema) -> str | None:
    return getattr(schema[TIME], "time_zone", None)


def moment(option: str, text: str | None, zone: str | None = None) -> int:
    """The microseconds of a stamp that someone wrote down, as they are kept in a zone."""
    try:
        at = datetime.fromisoformat(text or "1970-01-01")
    except ValueError as e:
        raise ConfigError(f"data.{option}: {text} is no date -> write it as 2026-01-31 or 2026-01-31 12:00") from e
    return (at.replace(tzinfo=at.tzinfo or ZoneInfo(zone or "UTC")) - EPOCH) // timedelta(microseconds=1)


def told(at: pl.Series, zone: str | None) -> list[str]:
    """Microseconds as ISO 8601 writes stamps; days alone where all begin one."""
    time = at.cast(pl.Datetime("us", zone))
    is_days = zone is None and (time.dt.truncate("1d") == time).all()
    return time.dt.to_string("%Y-%m-%d" if is_days else f"%Y-%m-%dT%H:%M:%S%.f{'%:z' if zone else ''}").to_list()
