"""The rows of CSV and Parquet files, in blocks, so that a file need not fit in memory."""

import codecs
import csv
import io
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from src.data.report import Cleaning
from src.run.errors import ConfigError, DataError

SEPARATORS = (",", ";", "\t", "|")
HEAD_LINES = 200  # by which the separator is found
BLOCK_BYTES = 2**24
ROW = "\0row"  # the column of row numbers, as a spreadsheet shows them: the header is row 1
OTHERS = {b"PK\x03\x04": "an Excel or zip file", b"\xd0\xcf\x11\xe0": "an Excel file"}  # by their first bytes


@dataclass(frozen=True)
class Format:
    """How the text of a file is to be read; see FrameDataModule."""

    separator: str | None = None
    decimal: str = "."
    encoding: str = "utf-8"
    skip_rows: int = 0
    date_format: str | None = None


Source = Path | pl.DataFrame  # a frame is read as Parquet is


def label(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "load()"


def place(source: Source, row: int) -> str:
    return f"{source.name if isinstance(source, Path) else 'load()'}, row {row}"


def blocks(source: Source, how: Format, cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    """The rows of a file with their numbers in ROW: all columns of a CSV as text, those of Parquet as they are.

    Rows are counted in `cleaning`; those that are empty, of another length or the header again are left out.

    Raises:
        DataError: the file is no text of that encoding or no Parquet, or has no header that names each column.
    """
    if isinstance(source, pl.DataFrame):
        yield from counted(iter([source]), cleaning)
        return
    cleaning.root = source.parent
    with open(source, "rb") as f:
        magic = f.read(4)
    if magic in OTHERS:
        raise DataError(f"{source}: it is {OTHERS[magic]} -> save it as CSV")
    if magic == b"PAR1" or source.suffix.lower() in (".parquet", ".pq"):
        yield from counted(parquet_blocks(source), cleaning)
    else:
        yield from csv_blocks(source, how, cleaning)


def counted(frames: Iterator[pl.DataFrame], cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    number = 1
    for frame in frames:
        yield frame.with_columns(pl.Series(ROW, np.arange(number, number + len(frame))))
        number += len(frame)
        cleaning.came_in += len(frame)


def parquet_blocks(path: Path) -> Iterator[pl.DataFrame]:
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield pl.DataFrame(pl.from_arrow(batch))
    except (pyarrow.ArrowException, pl.exceptions.PolarsError, OSError) as e:
        raise DataError(f"{path}: {str(e).splitlines()[0]} -> give a whole Parquet file, or a CSV") from e


def csv_blocks(path: Path, how: Format, cleaning: Cleaning) -> Iterator[pl.DataFrame]:
    end = check_text(path, how.encoding)
    names, separator = header(path, how, cleaning)
    ragged: list[int] = []

    def leave_out(row: Any) -> str:
        ragged.append(row.number)
        more = f" over {len(row.text.splitlines())} lines, as where a quote is not closed" if "\n" in row.text else ""
        what = f"ragged: {row.actual_columns} fields{more}, the header has {row.expected_columns}"
        cleaning.skip("", place(path, row.number), what, "mend the row, or give data.separator or data.skip_rows")
        return "skip"

    first = number = 2 + how.skip_rows
    last = ""
    try:
        for batch in open_csv(path, how, names, separator, leave_out):
            rows, number = numbered(number, len(batch), ragged)
            last = batch[-1][-1].as_py() if len(batch) else last
            yield without_empty(pl.DataFrame(pl.from_arrow(batch)).with_columns(pl.Series(ROW, rows)), path, cleaning)
    except pyarrow.ArrowInvalid as e:  # a row that is larger than a block
        raise open_quote(path, how, separator) from e
    if not ragged and ("\n" in last or "\r" in last) and end != '"':
        raise open_quote(path, how, separator)
    cleaning.came_in += number - first + len(ragged)


def open_csv(path: Path, how: Format, names: list[str], separator: str, handler: Any) -> Iterator[pyarrow.RecordBatch]:
    return pyarrow.csv.open_csv(
        path,
        pyarrow.csv.ReadOptions(
            use_threads=False,
            block_size=BLOCK_BYTES,
            encoding=how.encoding,
            column_names=names,
            skip_rows=how.skip_rows,
            skip_rows_after_names=1,
        ),
        pyarrow.csv.ParseOptions(
            delimiter=separator, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=handler
        ),
        pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False),
    )


def numbered(first: int, count: int, ragged: list[int]) -> tuple[np.ndarray, int]:
    """The numbers of so many rows from the first on, but for ragged ones; and the number after them. Ragged rows before
    that are taken out of the list, into which the reader may already have put those of later blocks."""
    rows = np.arange(first, first + count + len(ragged))
    rows = rows[~np.isin(rows, ragged)][:count]
    after = int(rows[-1]) + 1 if count else first
    del ragged[: bisect_left(ragged, after)]
    return rows, after


def without_empty(frame: pl.DataFrame, path: Path, cleaning: Cleaning) -> pl.DataFrame:
    """Rows but for those in which all fields are empty, or the names of the columns."""
    names = frame.columns[:-1]
    few = frame.filter(pl.col(names[0]).str.strip_chars().is_in(["", names[0]]))
    gone: list[int] = []
    for reason, is_header in (("empty row", False), ("the header again", True)):
        like = ((pl.col(name).str.strip_chars(), name if is_header else "") for name in names)
        same = few.filter(pl.all_horizontal(text == fixed for text, fixed in like))
        for row in same[ROW]:
            cleaning.remove("", place(path, row), reason)
        gone += same[ROW].to_list()
    return frame.filter(~pl.col(ROW).is_in(gone)) if gone else frame


def check_text(path: Path, encoding: str) -> str:
    """The last character that is no space; raises DataError where the file is not of that encoding, or no text."""
    try:
        decoder = codecs.getincrementaldecoder("utf-8-sig" if is_utf8(encoding) else encoding)()
    except (LookupError, TypeError) as e:
        raise ConfigError(f"data.encoding: Python knows no encoding {encoding} -> such as utf-8 or cp1252") from e
    line, end = 1, ""
    with pyarrow.input_stream(str(path)) as f:
        while True:
            data = f.read(BLOCK_BYTES)
            try:
                text = decoder.decode(data, not data)
            except UnicodeDecodeError as e:
                line += max(map(e.object[: e.start].count, (b"\n", b"\r")))
                other = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1252"
                what = f"{path}: line {line} is not {encoding} (byte 0x{e.object[e.start]:02x})"
                raise DataError(f"{what} -> save it as UTF-8, or give its data.encoding, such as {other}") from e
            if "\0" in text:
                line += text[: text.index("\0")].count("\n")
                hint = "give a text file, and its data.encoding, such as utf-16"
                raise DataError(f"{path}: line {line} has a zero byte -> {hint}")
            line += max(text.count("\n"), text.count("\r"))
            end = text.rstrip()[-1:] or end
            if not data:
                return end


def is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


@contextmanager
def opened(path: Path, how: Format) -> Iterator[io.TextIOWrapper]:
    """The lines of a file, from the one with the names on; it may be compressed."""
    encoding = "utf-8-sig" if is_utf8(how.encoding) else how.encoding
    with io.TextIOWrapper(pyarrow.input_stream(str(path)), encoding, newline="") as f:
        for _ in range(how.skip_rows):
            f.readline()
        yield f


def open_quote(path: Path, how: Format, separator: str) -> DataError:
    """That a quote is not closed, with the row that it is in, the last one that can be read."""
    number = how.skip_rows
    try:
        with opened(path, how) as f:
            for _ in csv.reader(f, delimiter=separator):
                number += 1
    except csv.Error:  # a field is too long
        number += 1
    return DataError(f"{place(path, number)}: a quote is not closed, or the row is too long -> close it")


def header(path: Path, how: Format, cleaning: Cleaning) -> tuple[list[str], str]:
    """The names of the columns and the separator."""
    with opened(path, how) as f:
        head = list(islice(f, HEAD_LINES))
    if head and head[0].lower().startswith("sep="):  # as Excel writes it
        raise DataError(f"{path}: the names of the columns are not in its first row -> --data.skip_rows 1")
    if not "".join(head).strip():
        raise DataError(f"{path}: it is empty -> give a file with a header and rows")
    found = {s: divided(head, s) for s in dict.fromkeys((how.separator or ",", *SEPARATORS))}
    best = max(found, key=lambda s: fit(found[s]))
    separator = how.separator or best
    if usual_width(found[separator]) == 1 < usual_width(found[best]):
        raise DataError(f"{path}: {separator!r} parts no fields, {best!r} does -> --data.separator {best!r}")
    check_head(path, how, found[separator])
    return name_columns(path, how, found[separator], cleaning), separator


Rows = list[tuple[int, list[str]]]  # with the number of lines before each


def divided(lines: list[str], separator: str) -> Rows:
    reader, out, before = csv.reader(lines, delimiter=separator), [], 0
    with suppress(csv.Error):  # a quote that is not closed
        for fields in reader:
            out.append((before, fields))
            before = reader.line_num
    return out


def usual_width(rows: Rows) -> int:
    """How many fields most rows have; where two widths are as frequent, the first."""
    return Counter([len(fields) for _, fields in rows if fields] or [1]).most_common(1)[0][0]


def fit(rows: Rows) -> tuple[int, int]:
    """How well a separator divides: rows of the usual width, which is over 1; and that width."""
    usual = usual_width(rows)
    return sum(len(fields) == usual > 1 for _, fields in rows), usual


def check_head(path: Path, how: Format, rows: Rows) -> None:
    """Raise DataError where the first row has not the names of the columns, or nothing follows."""
    usual, names = usual_width(rows), rows[0][1]
    before, fields = next((before, fields) for before, fields in rows if len(fields) == usual)
    if len(names) < min(2, usual) or (len(names) < usual - 1 and before):
        what = f"{path}: the names of the columns are not in row {how.skip_rows + 1}"
        raise DataError(f"{what} -> --data.skip_rows {how.skip_rows + before}, if they are {', '.join(fields)[:60]}")
    if not any(fields for _, fields in rows[1:]):
        hint = "close the quote in its header" if "\n" in "".join(names) else "give it some below its header"
        raise DataError(f"{path}: there are no rows -> {hint}")
    numeric = [name for name in names if re.fullmatch(r"\s*[-+]?\d+(\.\d*)?([eE][-+]?\d+)?\s*", name)]
    if len(numeric) == len(names) or (len(numeric) > len(names) / 2 and any("." in name for name in numeric)):
        what = f"{path}: row {how.skip_rows + 1} has numbers, as {numeric[0]}, not names of columns"
        raise DataError(f"{what} -> write a row of names above it")


def name_columns(path: Path, how: Format, rows: Rows, cleaning: Cleaning) -> list[str]:
    names = [name.strip() for name in rows[0][1]]
    longer = [fields for _, fields in rows[1:] if len(fields) == len(names) + 1]
    if longer and len(longer) > len(rows) / 2:  # one name is missing
        if any(fields[-1].strip() for fields in longer):
            what = f"{path}: the header has {len(names)} names, the rows {len(names) + 1} fields"
            raise DataError(f"{what} -> name the column that has no name")
        names.append("")
    unnamed = [i for i, name in enumerate(names) if not name]
    for i in unnamed:
        names[i] = f"unnamed_{i + 1}"
    if unnamed:
        cleaning.notes.append(f"columns without a name are called {', '.join(names[i] for i in unnamed[:5])}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}: two columns are called {min(twice)!r} -> rename one")
    return names
