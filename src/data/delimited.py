"""The rows of CSV and Parquet files, in blocks, so that a file need not fit in memory."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from src.data.report import Cleaning
from src.run.errors import DataError

SEPARATORS = (",", ";", "\t", "|")
HEAD_ROWS = 200  # by which the separator is found
BLOCK_BYTES = 2**24
ROW = "\0row"  # the column of row numbers, as a spreadsheet shows them: the header is row 1


@dataclass(frozen=True)
class Format:
    """How the text of a file is to be read; see FrameDataModule."""

    separator: str | None = None
    decimal: str = "."
    encoding: str = "utf-8"
    skip_rows: int = 0
    date_format: str | None = None


def blocks(path: Path, how: Format, cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    """The rows of a file with their numbers in ROW: all columns of a CSV as text, those of Parquet as they are.

    Raises:
        DataError: the file is empty, not of that encoding, has two columns of one name or no separator.
    """
    cleaning.root = path.parent
    if path.suffix.lower() in (".parquet", ".pq"):
        yield from parquet_blocks(path)
        return
    names, separator = header(path, how)
    ragged: list[int] = []

    def leave_out(row: Any) -> str:
        ragged.append(row.number + how.skip_rows)
        what = f"ragged: {row.actual_columns} fields, the header has {row.expected_columns}"
        cleaning.skip("", place(path, ragged[-1]), what, "mend the row, or give data.separator or data.skip_rows")
        return "skip"

    reader = pyarrow.csv.open_csv(
        path,
        pyarrow.csv.ReadOptions(
            use_threads=False, block_size=BLOCK_BYTES, encoding=how.encoding, skip_rows=how.skip_rows
        ),
        pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=leave_out),
        pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False),
    )
    number = 2 + how.skip_rows
    for batch in reader:
        frame = pl.DataFrame(pl.from_arrow(batch)).rename(str.strip)
        rows, number = numbered(number, len(frame), ragged)
        frame = frame.with_columns(pl.Series(ROW, rows, pl.Int64))
        again = pl.all_horizontal(pl.col(name).str.strip_chars() == name for name in frame.columns[:-1])
        for row in frame.filter(again)[ROW]:
            cleaning.remove("", place(path, row), "the header again")
        yield frame.filter(~again)


def numbered(first: int, count: int, left_out: list[int]) -> tuple[list[int], int]:
    """The numbers of so many rows from the first on, but for those left out; and the number after them."""
    out: list[int] = []
    gone = set(left_out)
    while len(out) < count:
        if first not in gone:
            out.append(first)
        first += 1
    return out, first


def place(path: Path, row: int) -> str:
    return f"{path.name}, row {row}"


def parquet_blocks(path: Path) -> Iterator[pl.DataFrame]:
    try:
        number = 1
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            frame = pl.DataFrame(pl.from_arrow(batch))
            yield frame.with_columns(pl.Series(ROW, range(number, number + len(frame)), pl.Int64))
            number += len(frame)
    except pyarrow.ArrowInvalid as e:
        raise DataError(f"{path}: {e} -> give a Parquet file, or name it .csv if it is text") from e


def header(path: Path, how: Format) -> tuple[list[str], str]:
    """The names of the columns, as they stand in the file, and the separator."""
    try:
        with open(path, encoding=how.encoding, newline="") as f:
            lines = [line for _, line in zip(range(HEAD_ROWS + how.skip_rows), f, strict=False)][how.skip_rows :]
    except (UnicodeDecodeError, LookupError) as e:
        raise DataError(f"{path}: not {how.encoding}: {e} -> save it as UTF-8, or give data.encoding") from e
    if not "".join(lines).strip():
        raise DataError(f"{path}: it is empty -> give a file with a header and rows")
    separator = how.separator or max(SEPARATORS, key=lambda s: fit(lines, s))
    names = next(csv.reader(lines, delimiter=separator))
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}: two columns are called {min(twice)!r} -> rename one")
    return names, separator


def fit(lines: list[str], separator: str) -> tuple[int, int]:
    """How well a separator divides: rows with as many fields as the header, of more than one; and how many fields."""
    widths = [len(fields) for fields in csv.reader(lines, delimiter=separator)]
    return sum(width == widths[0] > 1 for width in widths), widths[0]
