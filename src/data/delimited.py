"""The rows of CSV and Parquet files, in blocks, so that a file need not fit in memory."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeGuard

import polars as pl
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from src.data.report import Cleaning
from src.run.errors import DataError

SEPARATORS = (",", ";", "\t", "|")
HEAD_LINES = 200  # by which the separator is found
BLOCK_BYTES = 2**24
ROW = "\0row"  # the column of row numbers, as a spreadsheet shows them: the header is row 1


@dataclass(frozen=True)
class Format:
    """How the text of a file is to be read; see FrameDataModule."""

    separator: str | None = None
    decimal: str = "."
    ask_decimal: bool = False  # "." is only assumed
    encoding: str = "utf-8"
    skip_rows: int = 0
    date_format: str | None = None
    missing: tuple[str, ...] = ()
    present: tuple[str, ...] = ()


Source = Path | pl.DataFrame  # a frame is read as Parquet is


def label(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "load()"


def place(source: Source, row: int) -> str:
    return f"{Path(label(source)).name}, row {row}"


def blocks(source: Source, how: Format, cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    """The rows of a file with their numbers in ROW: all columns of a CSV as text, those of Parquet as they are.
    All are counted in `cleaning`; those that are empty, of another length or the header again are left out."""
    cleaning.root = Path(label(source)).parent
    yield from csv_blocks(source, how, cleaning) if is_csv(source) else typed_blocks(source, cleaning)


def is_csv(source: Source) -> TypeGuard[Path]:
    return isinstance(source, Path) and source.suffix.lower() not in (".parquet", ".pq")


def separator_of(source: Source, how: Format) -> str | None:
    return header(source, how, Cleaning())[1] if is_csv(source) else None


def typed_blocks(source: Source, cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    number = 1
    try:
        parts = [source] if isinstance(source, pl.DataFrame) else pyarrow.parquet.ParquetFile(source).iter_batches()
        for frame in map(pl.DataFrame, parts):
            yield frame.with_columns(pl.int_range(number, number + pl.len()).alias(ROW))
            number += len(frame)
            cleaning.came_in += len(frame)
    except (pyarrow.ArrowException, pl.exceptions.PolarsError, OSError) as e:
        raise DataError(f"{label(source)}: {str(e).splitlines()[0]} -> give a whole Parquet file, or a CSV") from e


def csv_blocks(path: Path, how: Format, cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    ragged: set[int] = set()

    def leave_out(row: Any) -> str:
        ragged.add(row.number)
        what = f"ragged: {row.actual_columns} fields, the header has {row.expected_columns}"
        cleaning.skip("", place(path, row.number), what, "mend it, close its quotes, or give data.separator")
        return "skip"

    numbers = (number for number in count(2 + how.skip_rows) if number not in ragged)
    last, separator = "", how.separator or ","
    try:
        names, separator = header(path, how, cleaning)
        for batch in open_csv(path, how, names, separator, leave_out):
            rows = pl.Series(ROW, list(islice(numbers, len(batch))), pl.Int64)
            last = batch[-1][-1].as_py() if len(batch) else last
            cleaning.came_in += len(batch)
            yield without_empty(pl.DataFrame(pl.from_arrow(batch)).with_columns(rows), path, cleaning)
    except (pyarrow.ArrowInvalid, csv.Error, UnicodeError) as e:
        check_lines(path, how, separator)
        raise DataError(f"{path}: {str(e).splitlines()[0]} -> mend it") from e
    if "\n" in last or "\r" in last:
        check_lines(path, how, separator)
    cleaning.came_in += len(ragged)


def open_csv(path: Path, how: Format, names: list[str], separator: str, handler: Any) -> Iterator[pyarrow.RecordBatch]:
    read = pyarrow.csv.ReadOptions(
        use_threads=False, block_size=BLOCK_BYTES, encoding=how.encoding, column_names=names, skip_rows=how.skip_rows
    )
    read.skip_rows_after_names = 1
    parse = pyarrow.csv.ParseOptions(
        delimiter=separator, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=handler
    )
    text = dict.fromkeys(names, pyarrow.string())
    return pyarrow.csv.open_csv(path, read, parse, pyarrow.csv.ConvertOptions(column_types=text))


def without_empty(frame: pl.DataFrame, path: Path, cleaning: Cleaning) -> pl.DataFrame:
    """Rows but for those in which all fields are empty, or the names of the columns."""
    names = frame.columns[:-1]
    few = frame.filter(pl.col(names[0]).str.strip_chars().is_in(["", names[0]]))
    is_empty = pl.all_horizontal(pl.col(names).str.strip_chars() == "")
    is_header = pl.all_horizontal(pl.col(name).str.strip_chars() == name for name in names)
    for reason, rows in (("empty row", few.filter(is_empty)), ("the header again", few.filter(is_header))):
        for row in rows[ROW]:
            cleaning.remove("", place(path, row), reason)
        frame = frame.join(rows, ROW, "anti", maintain_order="left") if len(rows) else frame
    return frame


def opened(path: Path, how: Format) -> io.TextIOWrapper:
    """The lines of a file, from the one with the names on; it may be compressed."""
    f = io.TextIOWrapper(pyarrow.input_stream(str(path)), how.encoding, "surrogateescape", newline="")
    for _ in range(how.skip_rows):
        f.readline()
    return f


def check_lines(path: Path, how: Format, separator: str) -> None:
    """Raise DataError with the first row that has bytes of another encoding, or a quote that is not closed."""
    number = how.skip_rows + 1
    with opened(path, how) as f:
        try:
            for fields in csv.reader(f, delimiter=separator, strict=True):
                "".join(fields).encode()  # fails where bytes were not decoded
                number += 1
        except (csv.Error, UnicodeError) as e:
            what = str(e) if isinstance(e, csv.Error) else f"it is not {how.encoding}"
            hint = "close its quotes, save it as CSV in UTF-8, or give its data.encoding, such as cp1252"
            raise DataError(f"{path.parent / place(path, number)}: {what} -> {hint}") from e


def header(path: Path, how: Format, cleaning: Cleaning) -> tuple[list[str], str]:
    """The names of the columns and the separator."""
    csv.field_size_limit(2**24)  # as of pyarrow
    with opened(path, how) as f:
        text = "".join(islice(f, HEAD_LINES)).removeprefix("\ufeff")
    text.encode()  # as above
    if len(text.strip().splitlines()) < 2 or "\0" in text:
        raise DataError(f"{path}: it is empty, a header alone or no text -> give a text file with rows below a header")
    rows = {s: list(csv.reader(io.StringIO(text, ""), delimiter=s)) for s in (how.separator or ",", *SEPARATORS)}
    best = max(rows, key=lambda s: fit(rows[s]))
    separator = how.separator or best
    if fit(rows[separator])[1] == 1 < fit(rows[best])[1]:
        raise DataError(f"{path}: {separator!r} parts no fields, {best!r} does -> --data.separator {best!r}")
    return name_columns(path, how, rows[separator], cleaning), separator


def fit(rows: list[list[str]]) -> tuple[int, int]:
    """How many rows have the usual number of fields, if that is over 1; and that number."""
    usual, often = Counter([len(fields) for fields in rows if fields] or [1]).most_common(1)[0]
    return often if usual > 1 else 0, usual


def name_columns(path: Path, how: Format, rows: list[list[str]], cleaning: Cleaning) -> list[str]:
    """The fields of the first row; raises DataError where they do not name each column."""
    usual = fit(rows)[1]
    if len(rows[0]) < usual or rows[0][0].lower().startswith("sep="):
        at = next((i for i, fields in enumerate(rows[1:], 1) if len(fields) == usual), 1)
        what = f"{path}: row {how.skip_rows + 1} has {len(rows[0])} names, most rows have {usual} fields"
        hint = f"--data.skip_rows {how.skip_rows + at}, if they are {', '.join(rows[at])[:60]}"
        raise DataError(f"{what} -> name each column in it, or give {hint}")
    names = [name.strip() or f"unnamed_{i}" for i, name in enumerate(rows[0], 1)]
    if unnamed := [name for name, old in zip(names, rows[0], strict=True) if not old.strip()]:
        cleaning.notes.append(f"columns without a name are called {', '.join(unnamed[:5])}")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(f"{path}: two columns are called {twice[0]!r} -> rename one, or write a row of names above")
    return names
