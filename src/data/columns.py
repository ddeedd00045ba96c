"""What the columns of a file are: numbers, categories, dates, text, ids; and their values, from whatever was typed."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from src.data.delimited import ROW, Format, blocks, place
from src.data.report import Cleaning
from src.run.errors import DataError, nearest

Kind = Literal["number", "category", "date", "text", "id", "empty"]
Column = dict[str, Any]  # name, kind, and of a date its `format`, of a number its `unit`
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "-", "--", "?", "nat")
DATE_FORMATS = (
    *("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S%.f"),
    *("%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%.f"),
    *("%Y-%m-%dT%H:%M:%S%#z", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%#z"),
    *("%Y/%m/%d", "%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S"),
    *("%d/%m/%Y", "%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y", "%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M:%S"),
    *("%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y", "%Y-%m"),
)
MOST = 0.9  # share of a column's values that must be numbers, or dates, for the others to be mistakes
MAX_LENGTH, MAX_DISTINCT_FRAC, FEW = 60, 0.5, 50  # of categories: mean length, distinct values


def number_pattern(decimal: str) -> str:
    """A number with its unit before or after it: groups are the number and both sides."""
    thousands = "[,'’\\s]" if decimal == "." else "[.'’\\s]"
    digits = rf"(?:\d{{1,3}}(?:{thousands}\d{{3}})+|\d+)"
    whole = rf"[+-−]?\s*(?:{digits}(?:\{decimal}\d*)?|\{decimal}\d+)(?:[eE][+-]?\d+)?"
    return rf"^(\(?[^\d\s.,+-]{{0,4}})\s*({whole})\s*([^\d\s][^\d]{{0,11}})?$".replace("+-−", "+−-")


def numbers(text: pl.Series, decimal: str) -> tuple[pl.Series, pl.Series]:
    """Text as float64, null where it is none, and the unit beside it (null where there is none)."""
    no_unit = pl.Series(text.name, [None], pl.String).extend_constant(None, len(text) - 1) if len(text) else text
    if decimal == ".":
        found = text.cast(pl.Float64, strict=False)
        found = found.set(~found.is_finite().fill_null(True), None)
        if found.null_count() == text.null_count():
            return found, no_unit
    groups = text.str.extract_groups(number_pattern(decimal)).struct
    before, digits, after = (groups.field(str(i)) for i in (1, 2, 3))
    plain = digits.str.replace_all("−", "-").str.replace_all(r"[,'’\s]" if decimal == "." else r"[.'’\s]", "")
    value = plain.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    negative = before.str.starts_with("(") & after.str.ends_with(")")  # as accountants write it
    value = pl.select(pl.when(negative.fill_null(False)).then(-value).otherwise(value)).to_series().alias(text.name)
    unit = (before.fill_null("") + after.fill_null("")).str.strip_chars("() ")
    return value, unit.set(unit == "", None)


def dates(text: pl.Series, form: str) -> pl.Series:
    """Text as microseconds, null where it is none; stamps with an offset become UTC."""
    zoned = form.endswith("z")
    found = text.str.to_datetime(form, time_unit="us", strict=False, time_zone="UTC" if zoned else None)
    return found.dt.replace_time_zone(None) if zoned else found


def cells(values: pl.Series) -> pl.Series:
    """Text without spaces around it, null where it says that there is no value."""
    text = values.cast(pl.String).str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(MISSING), None)


@dataclass
class Census:
    """What is known of a column after some blocks."""

    values: int = 0
    numbers: int = 0
    decimal_commas: int = 0
    length: int = 0
    dates: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DATE_FORMATS, 0))
    units: set[str] = field(default_factory=set)
    hashes: list[pl.Series] = field(default_factory=list)
    typed: str | None = None  # the kind of a Parquet column
    steps: bool = True  # each value is the one before and one more
    last: float | None = None

    def add(self, values: pl.Series, how: Format) -> None:
        if values.dtype != pl.String:
            self.typed = typed_kind(values.dtype)
            values = values.cast(pl.String, strict=False) if self.typed != "text" else pl.Series([], dtype=pl.String)
        text = cells(values).drop_nulls()
        self.values += len(text)
        found, unit = numbers(text, how.decimal)
        self.count_steps(found)
        self.numbers += len(found) - found.null_count()
        self.units |= set(unit.filter(found.is_not_null()).drop_nulls().unique().head(5))
        if found.null_count() and self.typed is None:
            if how.decimal == ".":
                self.decimal_commas += len(text) - numbers(text, ",")[0].null_count()
            for form in [how.date_format] if how.date_format else DATE_FORMATS:
                if self.dates.get(form, 0) or self.values == len(text):  # a format that no block before had is none
                    parsed = dates(text, form)
                    self.dates[form] = self.dates.get(form, 0) + len(parsed) - parsed.null_count()
        self.length += int(text.str.len_chars().sum())
        self.hashes.append(text.hash())

    def count_steps(self, found: pl.Series) -> None:
        if self.steps and len(found):
            jumps = pl.concat([pl.Series([self.last], dtype=pl.Float64), found]).diff().drop_nulls()
            self.steps, self.last = bool((jumps == 1).all()) and not found.null_count(), found[-1]

    def column(self, name: str, path: Path, kind: Kind | None) -> Column:
        """What the column is; raises DataError where that cannot be told."""
        if self.typed and kind is None:
            kind = self.typed  # type: ignore[assignment]
        form = max(self.dates, key=self.dates.__getitem__)
        if kind is None and self.decimal_commas > max(self.numbers, MOST * self.values):
            what = f"{path}: column {name} has decimal commas"
            raise DataError(f"{what} -> --data.decimal ',' (or data.types: {{{name}: category}})")
        if kind is None:
            kind = self.likely(name, form)
        if kind == "date" and self.typed is None:
            self.check_order(name, path, form)
            return {"name": name, "kind": "date", "format": form}
        if kind == "number" and len(self.units) > 1:
            raise DataError(
                f"{path}: column {name} has numbers in {', '.join(sorted(self.units))} -> give all one unit"
            )
        unit = {"unit": next(iter(self.units))} if kind == "number" and self.units else {}
        return {"name": name, "kind": kind, **unit}

    def likely(self, name: str, form: str) -> Kind:
        distinct = pl.concat(self.hashes).n_unique() if self.hashes else 0
        is_unique = distinct == self.values > FEW
        called_id = re.fullmatch(r"(?i)|(.*[_ ])?id|index|unnamed: \d+|row|row_?number|.*[a-z]ID", name)
        if not self.values:
            return "empty"
        if self.numbers >= MOST * self.values:
            return "id" if is_unique and (self.steps or called_id) else "number"
        if self.dates[form] >= MOST * self.values:
            return "date"
        if is_unique and self.length / self.values <= MAX_LENGTH:
            return "id"
        many = distinct > max(FEW, MAX_DISTINCT_FRAC * self.values)
        return "text" if many or self.length / self.values > MAX_LENGTH else "category"

    def check_order(self, name: str, path: Path, form: str) -> None:
        """Raise DataError where day and month cannot be told apart."""
        other = form.translate(str.maketrans("dm", "md"))
        if form[:2] in ("%d", "%m") and other != form and self.dates.get(other) == self.dates[form]:
            raise DataError(f"{path}: column {name}: day or month first? -> data.date_format '{form}' or '{other}'")


def typed_kind(dtype: pl.DataType) -> Kind:
    if dtype.is_numeric():
        return "number"
    if dtype in (pl.Date, pl.Datetime):
        return "date"
    return "category" if dtype in (pl.Boolean, pl.Categorical, pl.Enum) else "text"


def find_columns(path: Path, how: Format, types: dict[str, Kind]) -> dict[str, Column]:
    """The columns of a file by name, each with its kind: as `types` says, else as all of its values say."""
    census: dict[str, Census] = {}
    for block in blocks(path, how, Cleaning(invalid="skip")):
        for name in block.columns[:-1]:
            census.setdefault(name, Census()).add(block[name], how)
    if not census:
        raise DataError(f"{path}: there are no rows -> give it some")
    check_names(path, types, census, "data.types")
    return {name: one.column(name, path, types.get(name)) for name, one in census.items()}


def check_names(path: Path, names: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in names:
        if name not in known:
            listed = ", ".join(list(known)[:10])
            raise DataError(f"{path}: {what}: there is no column {name}{nearest(name, known)} -> take one of {listed}")


def read_columns(path: Path, how: Format, columns: Iterable[Column], cleaning: Cleaning) -> pl.DataFrame:
    """All usable rows: numbers as float64, dates as datetimes, others as text, row numbers in ROW. Those with a value
    that its column cannot have are taken down in `cleaning`."""
    wanted = list(columns)
    parts = list(typed_blocks(path, how, wanted, cleaning))
    cleaning.check()
    if not parts:
        raise DataError(f"{path}: there are no rows -> give it some")
    return pl.concat(parts)


def typed_blocks(path: Path, how: Format, columns: list[Column], cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    for block in blocks(path, how, cleaning):
        check_names(path, [c["name"] for c in columns], block.columns[:-1], "its columns")
        cleaning.came_in += len(block)
        out, bad = {}, pl.Series([False]).new_from_index(0, len(block))
        for column in columns:
            text = block[column["name"]]
            out[column["name"]], wrong = values(text, column, how)
            for i in wrong.arg_true():
                what = f"no {column['kind']}: column {column['name']} is {text[i]!r}"
                hint = f"mend it, or data.types: {{{column['name']}: category}}"
                cleaning.skip("", place(path, block[ROW][i]), what, hint)
            bad |= wrong
        yield pl.DataFrame({**out, ROW: block[ROW]}).filter(~bad)


def values(raw: pl.Series, column: Column, how: Format) -> tuple[pl.Series, pl.Series]:
    """The values of a column, and where they are none of its kind."""
    if raw.dtype.is_temporal() and column["kind"] == "date":
        zoned = getattr(raw.dtype, "time_zone", None)
        found = raw.cast(pl.Datetime("us", zoned))
        return (found.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zoned else found), raw != raw
    if raw.dtype.is_numeric() and column["kind"] == "number":
        found = raw.cast(pl.Float64)
        return found.set(~found.is_finite().fill_null(True), None), raw.is_null() & False
    text = cells(raw)
    if column["kind"] == "number":
        found = numbers(text, how.decimal)[0]
    elif column["kind"] == "date":
        found = dates(text, how.date_format or column["format"])
    else:
        found = text
    return found.alias(raw.name), text.is_not_null() & found.is_null()
