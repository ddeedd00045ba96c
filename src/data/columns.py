"""What the columns of a file are: numbers, categories, dates, text, ids; and their values, from whatever was typed."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from src.data.delimited import ROW, Format, Source, blocks, label, place
from src.data.report import Cleaning
from src.run.errors import DataError, nearest

Kind = Literal["number", "category", "date", "text", "id", "empty"]
Column = dict[str, Any]  # name, kind, and of a date its `format`, of a number its `unit`; `note`: what was decided
MISSING = (
    "",
    "na",
    "n/a",
    "n.a.",
    "#n/a",
    "<na>",
    "nan",
    "null",
    "none",
    "nat",
    "-",
    "--",
    "?",
    ".",
    "#value!",
    "#div/0!",
)
DAYS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y"),
)
TIMES = (
    *("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p"),
    *("T%H:%M:%S%.f%#z", " %H:%M:%S%.f%#z", " %H:%M:%S%.f UTC"),
)
DATE_FORMATS = (*(day + time for day in DAYS for time in TIMES), "%Y-%m")
EPOCHS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of dates that are written as numbers
MOST = 0.9  # share of a column's values that must be numbers, or dates, for the others to be mistakes
MAX_LENGTH, MAX_DISTINCT_FRAC, FEW, ALL = 60, 0.5, 50, 0.98  # mean length and distinct values of categories; of ids
COUNTED = 10**6  # values of which it is counted how many are distinct
SAMPLE = 100  # values by which the formats of dates are found
MAX_UNITS = 5  # with more it is no unit
CODES = {"zeros": "has leading zeros, so that it is no number", "digits": "has more digits than a number keeps"}
BEFORE = r"[$€£¥₹₽₩₺]|[A-Z]{1,2}\$|(?:USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL)\b"
AFTER = r"[kcm]?m[23]|[\p{L}%‰°$€£¥₹₽₩₺][\p{L}%‰°/²³·. -]{0,14}"


def number_pattern(decimal: str) -> str:
    """A number: groups are an open bracket, sign, unit, sign, number, unit, closed bracket."""
    parts = thousands(decimal)
    digits = rf"\d{{1,3}}(?:{parts}\d{{2,3}})*{parts}\d{{3}}|\d+"
    number = rf"(?:(?:{digits})(?:\{decimal}\d*)?|\{decimal}\d+)(?:[eE][+-]?\d+)?"
    return rf"^(\()?([-+−]?)\s*({BEFORE})?\s*([-+−]?)\s*({number})\s*({AFTER})?(\))?$"


def thousands(decimal: str) -> str:
    return r"[,'’\s]" if decimal == "." else r"[.'’\s]"


def numbers(text: pl.Series, decimal: str) -> tuple[pl.Series, pl.Series]:
    """Text as float64, null where it is none that is finite, and the unit beside it (null where there is none)."""
    groups = text.str.extract_groups(number_pattern(decimal)).struct.unnest().select(pl.all().fill_null(""))
    opened, sign, before, sign2, digits, after, closed = groups.get_columns()
    plain = digits.str.replace_all(thousands(decimal), "").str.replace(",", ".", literal=True)
    value = plain.cast(pl.Float64, strict=False)
    value = value.set(~value.is_finite() | ((opened == "") != (closed == "")), None)
    negative = (opened + sign + sign2).is_in(["-", "−", "("])  # in brackets, as accountants write it
    unit = (before + after).str.strip_chars()
    return value * pl.Series([1.0, -1.0]).gather(negative.cast(pl.UInt32)), unit.set(unit == "", None)


def plain_numbers(text: pl.Series, decimal: str) -> tuple[pl.Series, pl.Series]:
    """Finite numbers without any frills, null where there are none; and where there is another value."""
    dotted = text if decimal == "." else text.str.replace(",", ".", literal=True)
    found = dotted.cast(pl.Float64, strict=False)
    if decimal == ",":
        found = found.set(text.str.contains(".", literal=True), None)
    other = text.is_not_null() & ~found.is_finite().fill_null(False)
    found = found.set(other, None)
    if other.any():
        other = other & ~text.str.to_lowercase().is_in(MISSING)
    return found, other


def dates(text: pl.Series, form: str) -> pl.Series:
    """Text as microseconds, null where it is none; stamps with an offset become UTC."""
    if form in EPOCHS:
        stamps = text.cast(pl.Float64, strict=False) * (10**6 / EPOCHS[form])
        return stamps.cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
    form = form.replace(".%f", "%.f")  # as Python writes it
    zone = "UTC" if "%z" in form or "%#z" in form else None
    found = text.str.to_datetime(form, time_unit="us", strict=False, time_zone=zone).dt.replace_time_zone(None)
    return found.set(found.dt.year() < 1000, None)  # two digits of a year are not guessed


def number_format(low: float, high: float) -> str:
    """How dates are written as numbers between these: years, YYYYMMDD, or time since 1970."""
    if 1000 <= low <= high < 3000:
        return "%Y"
    if 1000_01_01 <= low <= high < 3000_01_01:
        return "%Y%m%d"
    return next((unit for unit, second in EPOCHS.items() if high < 10**11 * second), "ns")


def as_text(values: pl.Series) -> pl.Series:
    """Without spaces around it."""
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Duration, pl.Object):
        return pl.Series(values.name, [None if v is None else str(v) for v in values.to_list()], pl.String)
    text = values.cast(pl.String).str.strip_chars()
    return text.str.strip_suffix(".0") if values.dtype.is_float() else text


@dataclass
class Census:
    """What is known of a column after some blocks."""

    values: int = 0
    plain: int = 0  # numbers without any frills
    others: int = 0  # numbers with units, thousands or brackets
    commas: int = 0  # numbers if commas are decimal
    length: int = 0  # of values that are no plain numbers
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True
    steps: bool = True  # each value is the one before and one more
    last: float | None = None
    units: set[str] = field(default_factory=set)
    dates: Counter[str] = field(default_factory=Counter)  # values that each format fits
    dated: int = 0  # that any fits
    first: dict[str, tuple[int, str]] = field(default_factory=dict)  # row and value, of each format
    hashes: list[pl.Series] = field(default_factory=list)
    typed: str | None = None  # the kind of a Parquet column
    examples: dict[str, str] = field(default_factory=dict)  # of what must be told

    def add(self, values: pl.Series, rows: pl.Series, how: Format) -> None:
        if values.dtype != pl.String:
            self.typed = typed_kind(values.dtype)
        if values.dtype != pl.String and self.typed in ("text", "date"):  # nothing is to be found out
            self.values += len(values) - values.null_count()
            if values.dtype.is_nested():
                self.examples["nested"] = "lists or records, read as text"
            return
        text = as_text(values)
        found, other = plain_numbers(text, how.decimal)
        is_value = found.is_not_null() | other
        if (counted := sum(map(len, self.hashes))) < COUNTED:
            self.hashes.append(text.filter(is_value).head(COUNTED - counted).hash())
        self.values += int(is_value.sum())
        self.add_plain(found.drop_nulls(), text.filter(found.is_not_null()), bool(found.null_count()))
        if other.any():
            self.add_others(text.filter(other), rows.filter(other), how)

    def add_plain(self, found: pl.Series, text: pl.Series, holes: bool) -> None:
        if not len(found):
            self.steps = self.steps and not holes
            return
        self.plain += len(found)
        self.low, self.high = min(self.low, found.min()), max(self.high, found.max())  # type: ignore
        self.whole = self.whole and bool((found == found.floor()).all())
        jumps = pl.concat([pl.Series([self.last], dtype=pl.Float64), found.alias("")]).diff().drop_nulls()
        self.steps, self.last = self.steps and not holes and bool((jumps == 1).all()), found[-1]
        if self.whole:
            codes = {"zeros": text.str.contains(r"^[-+]?0\d")}
            if max(-self.low, self.high) > 2**53:
                codes["digits"] = text.str.contains(r"^[-+]?\d{16,}$") & (found.abs() > 2**53)
            for what, where in codes.items():
                if what not in self.examples and where.any():
                    self.examples[what] = text.filter(where)[0]

    def add_others(self, rest: pl.Series, rows: pl.Series, how: Format) -> None:
        self.examples.setdefault("other", rest[0])
        self.find_formats(rest.head(SAMPLE), rows, how)
        text, counts = rest.alias("text").value_counts().get_columns()
        self.length += int((text.str.len_chars() * counts).sum())
        is_date = pl.repeat(False, len(text), eager=True)
        for form in self.first:
            fits = dates(text, form).is_not_null()
            self.dates[form] += int(counts.filter(fits).sum())
            is_date |= fits
        self.dated += int(counts.filter(is_date).sum())
        text, counts = text.filter(~is_date), counts.filter(~is_date)
        found, unit = numbers(text, how.decimal)
        is_number = found.is_not_null()
        self.others += int(counts.filter(is_number).sum())
        self.units |= set(unit.filter(is_number).drop_nulls().unique().head(MAX_UNITS + 1))
        if how.decimal == ".":
            self.commas += int(counts.filter(~is_number & numbers(text, ",")[0].is_not_null()).sum())
        if "parted" not in self.examples:
            for value in text.filter(is_number & text.str.contains(rf"\d{thousands(how.decimal)}\d")).head(1):
                self.examples["parted"] = value

    def find_formats(self, sample: pl.Series, rows: pl.Series, how: Format) -> None:
        if self.values > COUNTED or not sample.str.contains(r"\d").any():
            return
        for form in [how.date_format] if how.date_format else DATE_FORMATS:
            if form not in self.first and len(fits := dates(sample, form).is_not_null().arg_true()):
                self.first[form] = (rows[fits[0]], sample[fits[0]])

    def column(self, name: str, where: str, given: Kind | None, how: Format) -> Column:
        """What the column is; raises DataError where that cannot be told."""
        at = f"{where}: column {name}"
        kind = given or (self.typed if self.values and self.typed not in (None, "number") else self.likely(name, at))
        out: Column = {"name": name, "kind": kind}
        if kind == "date" and self.typed != "date":
            out["format"] = self.date_format(at, how)
        if kind == "number":
            self.check_number(at)
            out |= dict.fromkeys(["unit"] if self.units else [], next(iter(self.units), None))
        note = self.note(kind)
        return out | ({"note": note} if note else {})

    def likely(self, name: str, at: str) -> Kind:
        called_id = re.fullmatch(r"(?i:(.*[_ .-])?id|index|unnamed[_: ]*\d+|row|row_?(number|id))|.*[a-z]I[Dd]", name)
        distinct, counted = (pl.concat(self.hashes).n_unique(), sum(map(len, self.hashes))) if self.hashes else (0, 0)
        unique, length = distinct >= ALL * counted, self.length / max(1, self.values - self.plain)
        if not self.values:
            return "empty"
        if self.commas and self.whole and self.plain + self.others + self.commas >= MOST * self.values:
            raise DataError(f"{at} has decimal commas -> --data.decimal ',' (or data.types: {{...: category}})")
        if self.plain + (self.others if len(self.units) <= MAX_UNITS else 0) >= MOST * self.values:
            if self.whole and self.examples.keys() & CODES:
                return "id" if unique and counted > FEW else "category"
            is_id = self.whole and unique and (called_id or (self.steps and counted > FEW))
            return "id" if is_id and counted > 1 else "number"
        if self.dated >= MOST * self.values:
            return "date"
        if unique and (counted > FEW or called_id) and length <= MAX_LENGTH:
            return "id"
        return "text" if distinct > max(FEW, MAX_DISTINCT_FRAC * counted) or length > MAX_LENGTH else "category"

    def date_format(self, at: str, how: Format) -> str:
        if how.date_format or self.plain > max(self.dates.values(), default=0):
            return how.date_format or number_format(self.low, self.high)
        if not self.dates:
            what = f"{at} has no dates, but {self.examples.get('other', 'nothing')!r}"
            raise DataError(f"{what} -> give data.date_format, or take it out of data.types")
        form, count = self.dates.most_common(1)[0]
        odd = (one for one in self.first.values() if dates(pl.Series([one[1]]), form).has_nulls())
        if count < MOST * self.dated and (other := next(odd, None)):
            (row, value), (row2, value2) = self.first[form], other
            what = f"{at} has dates of several kinds: {value!r} in row {row}, {value2!r} in row {row2}"
            raise DataError(f"{what} -> write all in one way, or leave it out with data.drop")
        swapped = form.translate(str.maketrans("dm", "md"))
        if form != swapped and self.dates[swapped] == count:
            raise DataError(f"{at}: day or month first? -> data.date_format '{form}' or '{swapped}'")
        return form

    def check_number(self, at: str) -> None:
        if len(self.units) > 1:
            units = ", ".join(sorted(self.units)[:MAX_UNITS])
            raise DataError(f"{at} has numbers in {units} -> give all one unit, or data.types: {{...: category}}")
        if self.values and not self.plain + self.others:
            what = f"{at}: data.types says number, but none is one, as {self.examples.get('other')!r}"
            raise DataError(f"{what} -> take it out of data.types, or give data.decimal")

    def note(self, kind: str) -> str:
        """What was decided about the column, and may be wrong."""
        told = [
            f"{self.examples[what]!r} {CODES[what]}" for what in CODES if what in self.examples and kind != "number"
        ]
        if kind == "number" and "parted" in self.examples:
            told.append(f"{self.examples['parted']!r} is read with separators of thousands")
        if kind == "number" and self.units and self.plain:
            told.append(f"numbers without unit are taken as {', '.join(self.units)}")
        if kind == "id" and self.plain and not told:
            told.append("whole numbers, all different, by their name or order")
        if kind in ("category", "text", "id") and self.values / 2 < self.plain < self.values and not told:
            told.append(
                f"{self.plain:,} of {self.values:,} values are numbers, others not, as {self.examples['other']!r}"
            )
        return "; ".join(told + [self.examples[what] for what in ("nested",) if what in self.examples])


def typed_kind(dtype: pl.DataType) -> Kind:
    if dtype.is_numeric():
        return "number"
    if dtype in (pl.Date, pl.Datetime):
        return "date"
    return "category" if dtype in (pl.Boolean, pl.Categorical, pl.Enum) else "text"


def find_columns(source: Source, how: Format, types: Mapping[str, Kind], drop: Iterable[str] = ()) -> dict[str, Column]:
    """The columns of a file by name, each with its kind: as `types` says, else as all of its values say."""
    census: dict[str, Census] = {}
    for block in blocks(source, how, Cleaning(invalid="skip")):
        for name in block.columns[:-1]:
            one = census.setdefault(name, Census())
            if name not in drop:
                one.add(block[name], block[ROW], how)
    if not census:
        raise DataError(f"{label(source)}: there are no rows -> give it some")
    for option, names in (("types", types), ("drop", drop)):
        check_names(f"data.{option}", names, census)
    return {n: one.column(n, label(source), types.get(n), how) for n, one in census.items() if n not in drop}


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            listed = ", ".join(list(known)[:10])
            raise DataError(f"{what}: there is no column {name}{nearest(name, known)} -> take one of {listed}")


def read_columns(source: Source, how: Format, columns: Iterable[Column], cleaning: Cleaning) -> pl.DataFrame:
    """All usable rows: numbers as float64, dates as datetimes, others as text, row numbers in ROW. Those with a value
    that its column cannot have are taken down in `cleaning`."""
    wanted = list(columns)
    parts = [typed(block, source, how, wanted, cleaning) for block in blocks(source, how, cleaning)]
    cleaning.check()
    if not sum(map(len, parts)):
        raise DataError(f"{label(source)}: there are no rows that can be used -> give it some")
    return pl.concat(parts)


def typed(block: pl.DataFrame, source: Source, how: Format, columns: list[Column], cleaning: Cleaning) -> pl.DataFrame:
    check_names(label(source), [c["name"] for c in columns], block.columns[:-1])
    out, bad = {}, pl.repeat(False, len(block), eager=True)
    for column in columns:
        name, kind = column["name"], column["kind"]
        out[name], wrong = values(block[name], column, how)
        for i in (wrong & ~bad).arg_true():
            value = block[name][i]
            what = "not finite" if kind == "number" and is_infinite(value) else f"no {kind}"
            hint = "data.date_format" if kind == "date" else f"data.types: {{{name}: category}}"
            cleaning.skip(
                "", place(source, block[ROW][i]), f"{what}: column {name} is {value!r}", f"mend it, or give {hint}"
            )
        bad |= wrong
    return pl.DataFrame({**out, ROW: block[ROW]}).filter(~bad)


def is_infinite(value: Any) -> bool:
    with suppress(ValueError):
        return math.isinf(float(value))
    return False


def values(raw: pl.Series, column: Column, how: Format) -> tuple[pl.Series, pl.Series]:
    """The values of a column, and where they are none of its kind."""
    kind = column["kind"]
    if raw.dtype.is_temporal() and kind == "date":
        zoned = getattr(raw.dtype, "time_zone", None)
        found = raw.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zoned else raw
        return found.cast(pl.Datetime("us")), pl.repeat(False, len(raw), eager=True)
    if kind == "number" and (raw.dtype.is_numeric() or raw.dtype == pl.Boolean):
        found = raw.cast(pl.Float64).fill_nan(None)
        return found.set(found.is_infinite(), None), found.is_infinite().fill_null(False)
    text = as_text(raw)
    if kind == "number":
        found, other = plain_numbers(text, how.decimal)
        if other.any():
            found = found.scatter(other.arg_true(), numbers(text.filter(other), how.decimal)[0])
        return found.alias(raw.name), other & found.is_null()
    text = text.set(text.str.to_lowercase().is_in(MISSING), None)
    if kind != "date":
        return text, pl.repeat(False, len(raw), eager=True)
    found = dates(text, how.date_format or column.get("format") or likely_format(text))
    return found, text.is_not_null() & found.is_null()


def likely_format(text: pl.Series) -> str:
    """Of dates that were no text in the file that a model was trained on."""
    return max(DATE_FORMATS, key=lambda form: dates(text.head(SAMPLE), form).count())
