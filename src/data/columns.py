"""What the columns of a file are: numbers, categories, dates, text, ids; and the rows with their values."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

from src.data import cells
from src.data.delimited import ROW, Format, Source, blocks, label, place, separator_of
from src.data.report import Cleaning
from src.run.errors import DataError, nearest

Kind = Literal["number", "category", "date", "text", "id", "empty"]
Column = dict[
    str, Any
]  # name, kind; of a number its `unit`, of a date its `format` and `utc`: it had an offset; `note`
DATES, CATEGORIES = (pl.Date, pl.Datetime), (pl.Boolean, pl.Categorical, pl.Enum)  # by their types in a Parquet file
MOST = 0.9  # share of a column's values that must be numbers, or dates, for the others to be mistakes
MAX_LENGTH, MAX_DISTINCT_FRAC, FEW, ALL = 60, 0.5, 50, 0.98  # mean length and distinct values of categories; of ids
MAX_SEEN = 50_000  # distinct values by which it is told what a column is
MAX_UNITS = 5  # with more it is no unit
CALLED_ID = r"(?i:(.*[_ .-])?id|unnamed[_: ]*\d+|row_?number)|.*[a-z]I[Dd]"
CODE = r"^[-+]?(0\d+|\d{17,})$"  # digits that a number does not keep
EXPONENT = r"^\d+[eE]\d+$"  # that are codes, such as 10E0, where all look like this
SERIAL = (20_000, 80_000)  # days as spreadsheets count them: 1954 to 2119


def find_columns(source: Source, how: Format, types: Mapping[str, Kind], drop: Iterable[str] = ()) -> dict[str, Column]:
    """The columns of a file by name, each with its kind: as `types` says, else as its values say."""
    cleaning, dtypes = Cleaning(), pl.Schema()
    seen: dict[str, pl.DataFrame] = {}
    for block in blocks(source, how, cleaning):
        dtypes = block.drop(ROW).schema
        for name in (name for name in dtypes if name not in drop):
            seen[name] = count_values(block[name], seen.get(name), how)
    if not dtypes:
        cleaning.check()  # all rows are ragged
    check_names("data.types", types, dtypes)
    check_names("data.drop", drop, dtypes)
    out = {}
    for name, values in seen.items():
        census = Census(f"{label(source)}: column {name}", values, how)
        out[name] = find_column(name, census, dtypes[name], types.get(name), name == dtypes.names()[0])
    return out


def count_values(values: pl.Series, before: pl.DataFrame | None, how: Format) -> pl.DataFrame:
    """Distinct values in the order they come, and how often; those of the blocks `before` included."""
    if before is not None and len(before) >= MAX_SEEN:
        return before
    seen = pl.DataFrame({"text": cells.as_text(values, how), "count": np.ones(len(values), np.int64)}).drop_nulls()
    seen = seen if before is None else pl.concat([before, seen])
    return seen.group_by("text", maintain_order=True).agg(pl.sum("count"))


def total(seen: pl.DataFrame) -> int:
    return int(seen["count"].sum())


class Census:
    """What the values of a column can be read as: some are numbers, some of the `rest` dates."""

    def __init__(self, at: str, seen: pl.DataFrame, how: Format) -> None:
        self.at, self.how, self.seen, self.values = at, how, seen, total(seen)  # `at` names file and column
        number, unit = cells.numbers(seen["text"], how.decimal)
        self.numbers = seen.with_columns(number.alias("number"), unit.alias("unit")).filter(number.is_not_null())
        self.plain = self.numbers.filter(pl.col("unit").is_null())
        self.units = self.numbers["unit"].drop_nulls().unique().sort().to_list()
        self.rest = seen.filter(number.is_null())
        text = self.rest["text"]
        self.commas = self.rest.filter(cells.numbers(text, ",")[0].is_not_null())
        formats = [how.date_format] if how.date_format else cells.date_formats(text)
        self.fits = pl.DataFrame({form: cells.dates(text, form).is_not_null() for form in formats})
        self.is_date = self.fits.select(pl.any_horizontal(pl.all())).to_series()
        self.is_whole = bool((self.plain["number"] % 1 == 0).all())
        codes = self.plain.filter(pl.col("text").str.contains(CODE))
        codes = codes if len(codes) else self.plain.filter(self.plain["text"].str.contains(EXPONENT).all())
        self.code = codes["text"].first() if self.is_whole else None

    def kind(self, name: str, is_first: bool) -> Kind:
        if not self.values:
            return "empty"
        called_id, distinct = re.fullmatch(CALLED_ID, name), len(self.seen)
        is_unique = distinct >= ALL * self.values and (called_id or self.values > FEW)
        numbers = self.numbers if len(self.units) <= MAX_UNITS else self.plain
        if total(numbers) + total(self.commas) >= MOST * self.values:
            low, high = self.plain["number"].min(), self.plain["number"].max()
            counts_rows = is_first and low in (0, 1) and high in (self.values - 1, self.values)
            is_code = self.is_whole and (called_id or self.code)
            if is_unique and self.is_whole and (is_code or counts_rows):
                return "id"
            return "category" if is_code else "number"
        if total(self.rest.filter(self.is_date)) >= MOST * self.values:
            return "date"
        length = (self.seen["text"].str.len_chars() * self.seen["count"]).sum() / self.values
        if is_unique and length <= MAX_LENGTH:
            return "id"
        return "text" if distinct > max(FEW, MAX_DISTINCT_FRAC * self.values) or length > MAX_LENGTH else "category"

    def unit(self) -> str | None:
        """Of its numbers; raises DataError where they would be read wrong."""
        hint = f"or data.types: {{{self.at.rpartition('column ')[2]}: category}}"
        if len(self.commas) and self.is_whole and total(self.numbers) + total(self.commas) >= MOST * self.values:
            raise DataError(f"{self.at} has decimal commas, as {self.commas['text'][0]} -> --data.decimal ',', {hint}")
        if len(self.units) > 1:
            raise DataError(f"{self.at} has numbers in {', '.join(self.units[:MAX_UNITS])} -> give all in one, {hint}")
        if self.units == ["%"] and len(self.plain):
            two = f"{self.numbers.filter(pl.col('unit') == '%')['text'][0]} and {self.plain['text'][0]}"
            raise DataError(f"{self.at} has numbers with % and without, {two} -> write all in one way, {hint}")
        return next(iter(self.units), None)

    def date_format(self) -> str:
        """Of most of its dates; raises DataError where that cannot be told."""
        counts = {form: total(self.rest.filter(self.fits[form])) for form in self.fits.columns}
        form = max(counts, key=counts.__getitem__)
        if total(self.plain) > counts[form]:
            numbers = self.plain["number"].to_numpy()
            if SERIAL[0] <= numbers.min() <= numbers.max() < SERIAL[1]:
                what = f"{self.at} has {numbers[0]:g} for a date, a day as spreadsheets count them?"
                raise DataError(f"{what} -> save it as dates, such as 2020-04-13, or data.types: {{...: number}}")
            return cells.number_format(numbers)
        odd = self.rest.filter(self.is_date & ~self.fits[form])
        if total(odd) > (1 - MOST) * (counts[form] + total(odd)):
            two = f"{self.rest.filter(self.fits[form])['text'][0]!r}, {odd['text'][0]!r}"
            raise DataError(f"{self.at} has dates of several kinds: {two} -> write all in one way, or data.drop: [...]")
        swapped = form.translate(str.maketrans("dm", "md"))
        if form != swapped and counts.get(swapped) == counts[form]:
            raise DataError(f"{self.at}: day or month first? -> data.date_format '{form}' or '{swapped}'")
        return form

    def notes(self, kind: Kind) -> list[str]:
        """What was decided about its numbers, and may be wrong."""
        if kind == "number":
            return [f"numbers without unit are taken as {unit}" for unit in self.units if len(self.plain)]
        if kind not in ("category", "id", "text") or not len(self.plain):
            return []
        why = f"others not, as {self.rest['text'][0]!r}" if len(self.rest) else "that are called an id or count rows"
        if self.code:
            why = f"{self.code!r} has leading zeros, over 16 digits or an E"
        return [f"{total(self.plain):,} of {self.values:,} values are numbers, {why}"]


def find_column(name: str, census: Census, dtype: pl.DataType, given: Kind | None, is_first: bool) -> Column:
    kind = given or census.kind(name, is_first)
    if not given and census.values and not (dtype == pl.String or dtype.is_numeric()):
        kind = "date" if dtype in DATES else "category" if dtype in CATEGORIES else "text"
    out: Column = {"name": name, "kind": kind, "note": "; ".join(census.notes(kind))}
    if kind == "number":
        out["unit"] = census.unit()
    if kind == "date" and dtype not in DATES:
        out["format"] = census.how.date_format or census.date_format()
    out["utc"] = out.get("format", "").endswith(cells.OFFSETS) or getattr(dtype, "time_zone", None) is not None
    return {key: value for key, value in out.items() if value}


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    if lacking := [name for name in names if name not in known]:
        listed = ", ".join(list(known)[:10])
        hint = nearest(lacking[0], known) if len(lacking) == 1 else ""
        todo = "take one of" if what.startswith("data.") else "add what is lacking, or rename columns; there are"
        raise DataError(f"{what}: there is no column {', '.join(lacking[:10])}{hint} -> {todo} {listed}")


def read_columns(source: Source, how: Format, columns: Collection[Column], cleaning: Cleaning) -> pl.DataFrame:
    """All usable rows: numbers as float64, dates as datetimes, others as text. Others are taken down in `cleaning`."""
    parts: list[pl.DataFrame] = []
    parted = Parted(source, how)
    for block in blocks(source, how, cleaning):
        columns = columns if parts else [with_format(c, block, source, how, cleaning) for c in columns]
        parts.append(typed(block, source, how, columns, cleaning))
        parted.look(block, columns)
    parted.check(cleaning)
    cleaning.check()
    if not sum(map(len, parts)):
        raise DataError(f"{label(source)}: there are no rows that can be used -> give it some")
    return pl.concat(parts)


def with_format(column: Column, block: pl.DataFrame, source: Source, how: Format, cleaning: Cleaning) -> Column:
    """A date's column with the format of its values here, if that of the file that was trained on does not fit."""
    name, form = column["name"], column.get("format")
    if column["kind"] != "date" or how.date_format or block.schema.get(name) != pl.String:
        return column
    seen = count_values(block[name], None, how)
    if seen.is_empty() or (form and not cells.dates(seen["text"], form).null_count()):
        return column
    census = Census(f"{label(source)}: column {name}", seen, how)
    found = census.date_format()
    is_utc = found.endswith(cells.OFFSETS)
    if cells.dates(seen["text"], found).null_count() or is_utc != column.get("utc", False):
        return column  # rows that do not fit are named
    if form:
        cleaning.notes.append(f"{name}: dates are read by {found}, those of train by {form}")
    return {**column, "format": found}


def typed(
    block: pl.DataFrame, source: Source, how: Format, columns: Collection[Column], cleaning: Cleaning
) -> pl.DataFrame:
    check_names(label(source), [c["name"] for c in columns], block.columns[:-1])
    out, bad = {}, pl.repeat(False, len(block), eager=True)
    for column in columns:
        name, kind = column["name"], column["kind"]
        out[name], wrong = cells.values(block[name], column, how)
        hint = "data.date_format" if kind == "date" else f"data.missing, or data.types: {{{name}: category}}"
        for row, value in block.filter(wrong & ~bad)[[ROW, name]].rows():
            cleaning.skip("", place(source, row), f"no {kind}: column {name} is {value!r}", f"mend it, or give {hint}")
        bad |= wrong
    return pl.DataFrame({**out, ROW: block[ROW]}).filter(~bad)


class Parted:
    """Numbers with the mark that parts thousands, such as 1,234, which may be 1.234."""

    def __init__(self, source: Source, how: Format) -> None:
        self.source, self.how, self.mark = source, how, "," if how.decimal == "." else "."
        self.first: dict[str, tuple[str, float]] = {}  # of each column
        self.clear: set[str] = set()  # columns in which that mark is no decimal mark
        self.has_commas = False

    def look(self, block: pl.DataFrame, columns: Collection[Column]) -> None:
        for name in (c["name"] for c in columns if c["kind"] == "number" and block[c["name"]].dtype == pl.String):
            if block[name].str.contains(self.mark, literal=True).any():
                text = cells.as_text(block[name], self.how)
                number, other = (cells.numbers(text, mark)[0] for mark in (self.how.decimal, self.mark))
                for row in (number.is_not_null() & text.str.contains(self.mark, literal=True)).arg_true()[:1]:
                    self.first.setdefault(name, (text[row], number[row]))
                if (number.is_not_null() & other.is_null()).any():
                    self.clear.add(name)
        if self.how.ask_decimal and self.first:
            self.has_commas |= any(v.str.contains(cells.DECIMAL_COMMA).any() for v in block.select(pl.col(pl.String)))

    def check(self, cleaning: Cleaning) -> None:
        """Note how they are read; raise DataError where that is to be said."""
        cleaning.notes += [f"{name}: {text!r} is read as {number:g}" for name, (text, number) in self.first.items()]
        doubt = [name for name in self.first if name not in self.clear]
        if self.how.ask_decimal and doubt and (self.has_commas or separator_of(self.source, self.how) == ";"):
            text, number = self.first[doubt[0]]
            what = f"{label(self.source)}: column {doubt[0]}: is {text} {number:g}, or has it decimals?"
            raise DataError(f"{what} -> data.decimal '.' or ','")
