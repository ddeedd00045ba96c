"""Cells of a file as numbers, dates and text, from whatever was typed."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from src.data.delimited import Format

WORDS = "na n/a n.a. #n/a <na> nan null none nat - -- ? . #value! #div/0!"
MISSING = ("", "NaN", "NaT", *WORDS.split(), *WORDS.upper().split(), *WORDS.title().split())
BOOLEANS = {word: word.lower() for word in ("True", "TRUE", "False", "FALSE")}  # as programs write them
DAYS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d %B %Y", "%d-%B-%Y", "%B %d, %Y"),  # %B reads Apr too
)
CLOCKS = (
    *("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p"),
    *("T%H:%M:%S%.f%#z", " %H:%M:%S%.f%#z", " %H:%M:%S%.f UTC"),
)
DATE_FORMATS = (*(day + clock for day in DAYS for clock in CLOCKS), "%Y-%m", "%m/%Y", "%B %Y", "%B-%Y")
OFFSETS = ("z", "UTC")  # at the end of formats
SAMPLE = 500  # values by which the formats of dates are found
EPOCHS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of dates that are written as numbers
THOUSANDS = {".": r"[,'’\s]", ",": r"[.'’\s]"}  # what parts them, by the decimal mark
DECIMAL_COMMA = r"^[-+]?(\d*,(\d{1,2}|\d{4,})|0,\d+)$"
BEFORE = r"\p{Sc}|[A-Z]{1,2}\$|(?:USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL)\b"
AFTER = r"[kcm]?m[23]|[\p{L}\p{Sc}%‰°][\p{L}%‰°/²³·. -]{0,14}"


def number_pattern(decimal: str) -> str:
    """A number: groups are an open bracket, sign, unit, sign, number, unit, closed bracket."""
    parts = THOUSANDS[decimal]
    digits = rf"[1-9]\d{{0,2}}(?:{parts}\d{{2,3}})*{parts}\d{{3}}|\d+"
    number = rf"(?:(?:{digits})(?:\{decimal}\d*)?|\{decimal}\d+)(?:[eE][+-]?\d+)?"
    return rf"^(\()?([-+−]?)\s*({BEFORE})?\s*([-+−]?)\s*({number})\s*({AFTER})?(\))?$"


def numbers(text: pl.Series, decimal: str) -> tuple[pl.Series, pl.Series]:
    """Text as float64, null where it is none that is finite, and the unit beside it (null where there is none)."""
    plain = text if decimal == "." else text.set(text.str.contains(".", literal=True), None).str.replace(",", ".")
    found = plain.cast(pl.Float64, strict=False)
    found = found.set(~found.is_finite(), None)
    unit = pl.repeat(None, len(text), dtype=pl.String, eager=True)
    if len(where := (text.is_not_null() & found.is_null()).arg_true()):
        value, beside = numbers_with_units(text.gather(where), decimal)
        found, unit = found.scatter(where, value), unit.scatter(where, beside)
    return found, unit


def numbers_with_units(text: pl.Series, decimal: str) -> tuple[pl.Series, pl.Series]:
    groups = text.str.extract_groups(number_pattern(decimal)).struct.unnest().select(pl.all().fill_null(""))
    opened, sign, before, sign2, digits, after, closed = groups.get_columns()
    plain = digits.str.replace_all(THOUSANDS[decimal], "").str.replace(",", ".", literal=True)
    value = plain.cast(pl.Float64, strict=False)
    value = value.set(~value.is_finite() | ((opened == "") != (closed == "")), None)
    negative = (opened + sign + sign2).is_in(["-", "−", "("])  # in brackets, as accountants write it
    unit = (before + after).str.strip_chars()
    return value * pl.Series([1.0, -1.0]).gather(negative.cast(pl.UInt32)), unit.set(unit == "", None)


def dates(text: pl.Series, form: str) -> pl.Series:
    """Text as microseconds, null where it is none. Stamps with an offset become UTC; a day alone is its midnight."""
    if form in EPOCHS:
        stamps = text.cast(pl.Float64, strict=False) * (10**6 / EPOCHS[form])
        return stamps.cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
    zone = "UTC" if form.endswith("z") else None
    chrono = form.replace(".%f", "%.f")  # as Python writes it
    found = text.str.to_datetime(chrono, time_unit="us", strict=False, time_zone=zone).dt.replace_time_zone(None)
    found = found.set(found.dt.year() < 1000, None)  # two digits of a year are not guessed
    day = re.split(r"[ T]%[HI]", form)[0]
    return found if day == form or form.endswith(OFFSETS) else found.zip_with(found.is_not_null(), dates(text, day))


def date_formats(text: pl.Series) -> list[str]:
    """Formats that fit some of the values, those that fit most first; the usual one where none does."""
    sample = text.gather_every(max(1, len(text) // SAMPLE))
    fits = {form: dates(sample, form).count() for form in DATE_FORMATS} if sample.str.contains(r"\d{4}").any() else {}
    return sorted((form for form in fits if fits[form]), key=fits.__getitem__, reverse=True) or [DAYS[0]]


def number_format(numbers: np.ndarray) -> str:
    """How these are dates: as years, YYYYMMDD, or time since 1970."""
    low, high = numbers.min(), numbers.max()
    if 1000 <= low <= high < 3000:
        return "%Y"
    if 1000_01_01 <= low <= high < 3000_01_01:
        return "%Y%m%d"
    return next((unit for unit, second in EPOCHS.items() if high < 10**11 * second), "ns")


def as_text(values: pl.Series, how: Format) -> pl.Series:
    """Without spaces around it; null where it says that a value is missing."""
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Duration, pl.Object):
        return pl.Series(values.name, [None if v is None else str(v) for v in values.to_list()], pl.String)
    text = values.cast(pl.String).str.strip_chars()
    text = text.str.strip_suffix(".0") if values.dtype.is_float() else text
    text = text.replace(BOOLEANS)
    text = text.set(text.is_in(list({*MISSING, *how.missing} - {*how.present})), None)
    if len(missing := missing_numbers(how)):
        number = text.str.replace(how.decimal, ".", literal=True).cast(pl.Float64, strict=False)
        text = text.set(number.is_in(missing), None)
    return text


def missing_numbers(how: Format) -> list[float]:
    return pl.Series(how.missing, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls().to_list()


def values(raw: pl.Series, column: Mapping[str, Any], how: Format) -> tuple[pl.Series, pl.Series]:
    """The values of a column, and where they are none of its kind."""
    kind = column["kind"]
    if kind == "date" and raw.dtype in (pl.Date, pl.Datetime):
        return raw.cast(pl.Datetime("us")), pl.repeat(False, len(raw), eager=True)  # of a time zone: UTC
    if kind == "number" and (raw.dtype.is_numeric() or raw.dtype == pl.Boolean):
        found = raw.cast(pl.Float64).fill_nan(None)
        found = found.set(found.is_in(missing_numbers(how)), None)
        return found.set(found.is_infinite(), None), found.is_infinite().fill_null(False)
    found = text = as_text(raw, how)
    if kind == "number":
        found, unit = numbers(text, how.decimal)
        unit = unit.fill_null("") if column.get("unit") == "%" else unit  # other units go without saying
        found = found.set(unit != column.get("unit", ""), None).alias(raw.name)
    elif kind == "date":
        found = dates(text, how.date_format or column.get("format", DAYS[0]))
    return found, text.is_not_null() & found.is_null()
