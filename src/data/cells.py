"""Cells of a file as numbers, dates and text, from whatever was typed."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import polars as pl

from src.data.delimited import Format

MISSING = (
    *("", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "null", "none", "nat", "-", "--", "?", "."),
    *("#value!", "#div/0!"),
)
DAYS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y"),
)
TIMES = (
    *("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p"),
    *("T%H:%M:%S%.f%#z", " %H:%M:%S%.f%#z", " %H:%M:%S%.f UTC"),
)
DATE_FORMATS = (*(day + time for day in DAYS for time in TIMES), "%Y-%m", "%b %Y", "%B %Y", "%b-%Y", "%m/%Y")
SAMPLE = 100  # values by which the format of dates is found
EPOCHS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of dates that are written as numbers
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


def day_of(form: str) -> str | None:
    """The format of a day alone, as some programs write midnight; None where there is no time, or it has an offset."""
    day = re.split(r"[ T]%[HI]", form)[0]
    return None if day == form or form.endswith(("z", "UTC")) else day


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


def is_infinite(value: Any) -> bool:
    with suppress(ValueError):
        return math.isinf(float(value))
    return False


def values(raw: pl.Series, column: Mapping[str, Any], how: Format) -> tuple[pl.Series, pl.Series]:
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
    form = how.date_format or column.get("format") or likely_format(text)
    found = dates(text, form)
    if found.null_count() > text.null_count() and (day := day_of(form)):
        found = found.zip_with(found.is_not_null(), dates(text, day))
    return found, text.is_not_null() & found.is_null()


def likely_format(text: pl.Series) -> str:
    """Of dates that were no text in the file that a model was trained on."""
    return max(DATE_FORMATS, key=lambda form: dates(text.head(SAMPLE), form).count())
