"""What the columns of a file are: numbers, categories, dates, text, ids; and the rows with their values."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import polars as pl

from src.data import cells
from src.data.delimited import ROW, Format, Source, blocks, label, place
from src.data.report import Cleaning
from src.run.errors import DataError, nearest

Kind = Literal["number", "category", "date", "text", "id", "empty"]
Column = dict[
    str, Any
]  # name, kind, and of a date its `format` and whether it had an offset (`utc`), of a number its `unit`; a `note`
MOST = 0.9  # share of a column's values that must be numbers, or dates, for the others to be mistakes
MAX_LENGTH, MAX_DISTINCT_FRAC, FEW, ALL = 60, 0.5, 50, 0.98  # mean length and distinct values of categories; of ids
COUNTED = 10**6  # values of which it is counted how many are distinct
MAX_UNITS = 5  # with more it is no unit
CODES = {"zeros": "has leading zeros, so that it is no number", "digits": "has more digits than a number keeps"}


@dataclass
class Census:
    """What is known of a column after some blocks."""

    is_first: bool = False  # of the file's columns
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
    utc: bool = False  # stamps with an offset
    examples: dict[str, str] = field(default_factory=dict)  # of what must be told

    def add(self, values: pl.Series, rows: pl.Series, how: Format) -> None:
        if values.dtype != pl.String:
            self.typed = typed_kind(values.dtype)
            self.utc = self.utc or getattr(values.dtype, "time_zone", None) is not None
        if values.dtype != pl.String and self.typed in ("text", "date"):  # nothing is to be found out
            self.values += len(values) - values.null_count()
            if values.dtype.is_nested():
                self.examples["told"] = "lists or records, read as text"
            return
        text = cells.as_text(values)
        found, other = cells.plain_numbers(text, how.decimal)
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
        self.find_formats(rest.head(cells.SAMPLE), rows, how)
        text, counts = rest.alias("text").value_counts().get_columns()
        self.length += int((text.str.len_chars() * counts).sum())
        is_date = pl.repeat(False, len(text), eager=True)
        for form in self.first:
            fits = cells.dates(text, form).is_not_null()
            self.dates[form] += int(counts.filter(fits).sum())
            is_date |= fits
        self.dated += int(counts.filter(is_date).sum())
        text, counts = text.filter(~is_date), counts.filter(~is_date)
        found, unit = cells.numbers(text, how.decimal)
        is_number = found.is_not_null()
        self.others += int(counts.filter(is_number).sum())
        self.units |= set(unit.filter(is_number).drop_nulls().unique().head(MAX_UNITS + 1))
        if how.decimal == ".":
            self.commas += int(counts.filter(~is_number & cells.numbers(text, ",")[0].is_not_null()).sum())
        if "parted" not in self.examples:
            parted = is_number & text.str.contains(rf"\d{cells.thousands(how.decimal)}\d")
            for value, number in zip(text.filter(parted).head(1), found.filter(parted).head(1), strict=True):
                self.examples["parted"] = f"{value!r} is read as {number:g}"

    def find_formats(self, sample: pl.Series, rows: pl.Series, how: Format) -> None:
        if self.values > COUNTED or not (how.date_format or sample.str.contains(r"\d{4}").any()):
            return
        for form in [how.date_format] if how.date_format else cells.DATE_FORMATS:
            if form not in self.first and len(fits := cells.dates(sample, form).is_not_null().arg_true()):
                self.first[form] = (rows[fits[0]], sample[fits[0]])

    def column(self, name: str, where: str, given: Kind | None, how: Format) -> Column:
        """What the column is; raises DataError where that cannot be told."""
        at = f"{where}: column {name}"
        kind = given or (self.typed if self.values and self.typed not in (None, "number") else self.likely(name))
        out: Column = {"name": name, "kind": kind, "utc": self.utc}
        if kind == "date" and self.typed != "date":
            out["format"] = self.date_format(at, how)
            out["utc"] = out["format"].endswith(("z", "UTC"))
        if kind == "number":
            self.check_number(at)
            out["unit"] = next(iter(self.units), None)
        out["note"] = self.note(kind)
        return {key: value for key, value in out.items() if value}

    def likely(self, name: str) -> Kind:
        called_id = re.fullmatch(r"(?i:(.*[_ .-])?id|unnamed[_: ]*\d+|row_?number)|.*[a-z]I[Dd]", name)
        distinct, counted = (pl.concat(self.hashes).n_unique(), sum(map(len, self.hashes))) if self.hashes else (0, 0)
        unique, length = distinct >= ALL * counted, self.length / max(1, self.values - self.plain)
        if not self.values:
            return "empty"
        if self.plain + self.commas + (self.others if len(self.units) <= MAX_UNITS else 0) >= MOST * self.values:
            if self.whole and (called_id or self.examples.keys() & CODES):
                return "id" if unique and (called_id or counted > FEW) else "category"
            counts_rows = self.is_first and self.steps and self.low in (0, 1) and counted > FEW
            return "id" if counts_rows else "number"
        if self.dated >= MOST * self.values:
            return "date"
        if unique and (counted > FEW or called_id) and length <= MAX_LENGTH:
            return "id"
        return "text" if distinct > max(FEW, MAX_DISTINCT_FRAC * counted) or length > MAX_LENGTH else "category"

    def date_format(self, at: str, how: Format) -> str:
        if how.date_format or self.plain > max(self.dates.values(), default=0):
            return how.date_format or cells.number_format(self.low, self.high)
        if not self.dates:
            what = f"{at} has no dates, but {self.examples.get('other', 'nothing')!r}"
            raise DataError(f"{what} -> give data.date_format, or take it out of data.types")
        with_days = {form: n + self.dates[cells.day_of(form) or ""] for form, n in self.dates.items() if n}
        form = max(with_days, key=with_days.__getitem__)
        if with_days[form] > self.dates[form]:
            self.examples["told"] = "a day alone is taken as its midnight"
        fitting = [one for one in (form, cells.day_of(form)) if one]
        odd = [o for o in self.first.values() if not any(cells.dates(pl.Series([o[1]]), f).count() for f in fitting)]
        if with_days[form] < MOST * self.dated and odd:
            (row, value), (row2, value2) = self.first[form], odd[0]
            what = f"{at} has dates of several kinds: {value!r} in row {row}, {value2!r} in row {row2}"
            raise DataError(f"{what} -> write all in one way, or leave it out with data.drop")
        swapped = form.translate(str.maketrans("dm", "md"))
        if form != swapped and with_days.get(swapped) == with_days[form]:
            raise DataError(f"{at}: day or month first? -> data.date_format '{form}' or '{swapped}'")
        return form

    def check_number(self, at: str) -> None:
        if self.commas and self.whole and self.plain + self.others + self.commas >= MOST * self.values:
            raise DataError(f"{at} has decimal commas -> --data.decimal ',' (or data.types: {{...: category}})")
        if len(self.units) > 1:
            units = ", ".join(sorted(self.units)[:MAX_UNITS])
            raise DataError(f"{at} has numbers in {units} -> give all one unit, or data.types: {{...: category}}")
        if self.values and not self.plain + self.others:
            what = f"{at}: data.types says number, but none is one, as {self.examples.get('other')!r}"
            raise DataError(f"{what} -> take it out of data.types, or give data.decimal")

    def note(self, kind: str) -> str:
        """What was decided about the column, and may be wrong."""
        example, told = self.examples, []
        if kind == "number" and "parted" in example:
            told.append(example["parted"])
        if kind == "number" and self.units and self.plain:
            told.append(f"numbers without unit are taken as {min(self.units)}")
        if kind in ("category", "id", "text") and self.plain:
            told += [f"{example[what]!r} {CODES[what]}" for what in CODES if what in example]
            if not told and self.plain < self.values:
                told.append(
                    f"{self.plain:,} of {self.values:,} values are numbers, others not, as {example['other']!r}"
                )
            elif not told:
                told.append(
                    "whole numbers that are called an id" if kind == "category" or not self.steps else "it counts rows"
                )
        return "; ".join([*told, *(example[what] for what in ("told",) if what in example)])


def typed_kind(dtype: pl.DataType) -> Kind:
    if dtype.is_numeric():
        return "number"
    if dtype in (pl.Date, pl.Datetime):
        return "date"
    return "category" if dtype in (pl.Boolean, pl.Categorical, pl.Enum) else "text"


def find_columns(source: Source, how: Format, types: Mapping[str, Kind], drop: Iterable[str] = ()) -> dict[str, Column]:
    """The columns of a file by name, each with its kind: as `types` says, else as all of its values say."""
    census: dict[str, Census] = {}
    found = Cleaning(invalid="skip")
    for block in blocks(source, how, found):
        for name in block.columns[:-1]:
            one = census.setdefault(name, Census(not census))
            if name not in drop:
                one.add(block[name], block[ROW], how)
    if not census:
        replace(found, invalid="error").check()  # rows that are all ragged
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
        out[name], wrong = cells.values(block[name], column, how)
        for i in (wrong & ~bad).arg_true():
            value = block[name][i]
            what = "not finite" if kind == "number" and cells.is_infinite(value) else f"no {kind}"
            hint = "data.date_format" if kind == "date" else f"data.types: {{{name}: category}}"
            what += f": column {name} is {value!r}"
            cleaning.skip("", place(source, block[ROW][i]), what, f"mend it, or give {hint}")
        bad |= wrong
    return pl.DataFrame({**out, ROW: block[ROW]}).filter(~bad)
