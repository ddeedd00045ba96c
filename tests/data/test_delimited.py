"""Files as they come: which rows they have, or the one line that says why they cannot be read."""

import gzip
from dataclasses import replace

import polars as pl
import pytest

from src.data import delimited
from src.data.delimited import ROW, Format, blocks
from src.data.report import MAX_LISTED, Cleaning
from src.run.errors import DataError

pytestmark = pytest.mark.in_fork  # polars


@pytest.fixture
def read(tmp_path):
    def rows(text: str | bytes, name: str = "a.csv", **options):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        cleaning = Cleaning()
        frames = list(blocks(path, replace(Format(), **options), cleaning))
        frame = pl.concat(frames) if frames else pl.DataFrame()
        return frame.columns[:-1], [list(row) for row in frame.rows()], cleaning

    return rows


PLAIN = "a,b\n1,2\n3,4\n"
FILES = {
    "plain": PLAIN,
    "no line end": PLAIN.strip(),
    "semicolon": PLAIN.replace(",", ";"),
    "tab": PLAIN.replace(",", "\t"),
    "bar": PLAIN.replace(",", "|"),
    "spaces": " a , b\n1,2\n3,4\n",
    "quoted": '"a","b"\n"1","2"\n3,"4"\n',
    "crlf": PLAIN.replace("\n", "\r\n"),
    "cr": PLAIN.replace("\n", "\r"),
    "bom": b"\xef\xbb\xbf" + PLAIN.encode(),
    "gzip": gzip.compress(PLAIN.encode()),
    "empty lines at the end": PLAIN + "\n\n,\n",
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_say_the_same(read, name):
    ending = ".csv.gz" if name == "gzip" else ".csv"
    names, rows, _ = read(FILES[name], name + ending)
    assert (names, rows) == (["a", "b"], [["1", "2", 2], ["3", "4", 3]])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-8-sig", "UTF8"])
def test_encodings(read, encoding):
    assert read("größe;b\n1;ä\n".encode(encoding), encoding=encoding)[:2] == (["größe", "b"], [["1", "ä", 2]])


NO_ROWS = "a.csv: it is empty, a header alone or no text -> give a text file with rows below a header"
FEW_NAMES = "names, most rows have {} fields -> name each column in it, or give --data.skip_rows {}, if they are {}"
REFUSED = {
    "empty": ("", NO_ROWS),
    "blank": (" \n\n", NO_ROWS),
    "header alone": ("a,b\n", NO_ROWS),
    "header alone without a line end": ("a,b", NO_ROWS),
    "header and empty lines": ("a,b\n\n\n", NO_ROWS),
    "two names": ("a,b, a\n1,2,3\n", "a.csv: two columns are called 'a' -> rename one"),
    "a title": ("Sales\na,b\n1,2\n3,4\n", "row 1 has 1 " + FEW_NAMES.format(2, 1, "a, b")),
    "titles": ("Sales\nof, 2020\n\na,b,c\n1,2,3\n5,6,7\n", "row 1 has 1 " + FEW_NAMES.format(3, 3, "a, b, c")),
    "blank lines above": ("\n\na,b\n1,2\n", "row 1 has 0 " + FEW_NAMES.format(2, 2, "a, b")),
    "Excel's first line": ("sep=;\na;b\n1;2\n", "row 1 has 2 " + FEW_NAMES.format(2, 1, "a, b")),
    "a name too few": ("a,b\n1,2,3\n4,5,6\n", "row 1 has 2 " + FEW_NAMES.format(3, 1, "1, 2, 3")),
    "separators at the end of rows alone": ("a,b\n1,2,\n3,4,\n", "row 1 has 2 " + FEW_NAMES.format(3, 1, "1, 2, ")),
    "no names": ("1,0,1\n3,4,5\n", "two columns are called '1' -> rename one, or write a row of names above"),
    "latin-1": ("a,b\n1,2\ncafé,2\n".encode("latin-1"), "row 3: it is not utf-8 -> .* such as cp1252"),
    "latin-1 in the header": ("café,b\n1,2\n".encode("latin-1"), "row 1: it is not utf-8"),
    "latin-1 at the end": (PLAIN.encode() + b"\xe9", "row 4: it is not utf-8"),
    "latin-1 with cr": (b"a,b\r1,2\r\xe9,3\r", "row 3: it is not utf-8"),
    "bad far on": (b"a,b\n" + b"1,2\n" * 5000 + b"\xe9,2\n", "row 5002: it is not utf-8"),
    "utf-16": (PLAIN.encode("utf-16"), "row 1: it is not utf-8"),
    "utf-16 without its mark": (PLAIN.encode("utf-16-le"), NO_ROWS),
    "zero byte": (b"a,b\n1,2\n3,\0\n", NO_ROWS),
    "Excel": (b"PK\x03\x04\x14\0\n\0\n\xb5\xee", "it is not utf-8 -> .*save it as CSV in UTF-8"),
    "old Excel": (b"\xd0\xcf\x11\xe0abc", "row 1: it is not utf-8 -> .*save it as CSV in UTF-8"),
    "open quote": ('a,b\n1,2\n"3,4\n5,6\n7,8\n', "a.csv, row 3: ragged: 1 fields, .* close its quotes"),
    "open quote at the end": ('a,b\n1,2\n3,"4\n5,6\n7,8\n', "a.csv, row 3: unexpected end of data -> close its"),
    "open quote before the end": ('a,b\n1,2\n3,"4\n5,6', "a.csv, row 3: unexpected end of data -> close its"),
    "open quote in the header": ('a,"b\n1,2\n3,4\n', "a.csv, row 1: unexpected end of data -> close its quotes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line(read, name):
    text, said = REFUSED[name]
    with pytest.raises(DataError, match=escaped(said)) as e:
        read(text)[2].check()
    assert "\n" not in str(e.value)


def escaped(text: str) -> str:
    for letter in "()[]|":
        text = text.replace(letter, f"\\{letter}")
    return text


def test_rows_are_numbered_as_a_spreadsheet_shows_them(read):
    text = 'a,b\n1,"x\ny"\n\n3\na,b\n5,6,7\n"q"" ;r",""\n,\n8,9\n'
    _, rows, cleaning = read(text)
    assert rows == [["1", "x\ny", 2], ['q" ;r', "", 7], ["8", "9", 9]]
    assert [(r["file"], r["reason"], r["detail"]) for r in cleaning.removed] == [
        ("a.csv, row 4", "ragged", "1 fields, the header has 2"),
        ("a.csv, row 6", "ragged", "3 fields, the header has 2"),
        ("a.csv, row 3", "empty row", ""),
        ("a.csv, row 8", "empty row", ""),
        ("a.csv, row 5", "the header again", ""),
    ]
    assert cleaning.came_in == 8


@pytest.mark.parametrize("block_bytes", [40, 64, 100, 1000])
def test_row_numbers_do_not_depend_on_blocks(read, monkeypatch, block_bytes):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    lines = ["3" if i % 7 == 0 else "" if i % 5 == 0 else f'{i},"x\ny"' for i in range(2, 300)] + ["9", "9"]
    _, rows, cleaning = read("title\na,b\n" + "\n".join(lines), skip_rows=1)
    assert [row[2] for row in rows] == [int(row[0]) + 1 for row in rows]
    assert len(rows) == sum("," in line for line in lines)
    assert cleaning.came_in == len(lines)


def test_a_quote_that_is_open_over_blocks(read, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    with pytest.raises(DataError, match=r"a.csv, row 14: unexpected end of data -> close its quotes"):
        read("a,b\n" + "1,2\n" * 12 + '3,"4\n' + "5,6\n" * 100)


def test_what_is_ragged_is_counted_but_not_all_listed(read):
    cleaning = read("a,b\n" + "1,2\n" * 10 + "1\n" * 3000)[2]
    assert (cleaning.skipped, len(cleaning.removed), cleaning.came_in) == (3000, MAX_LISTED, 3010)
    assert cleaning.report()["removed_counts"] == {"ragged": 3000}
    with pytest.raises(
        DataError, match=r"a.csv, row 12: ragged: 1 fields, .* 2,999 more of 3,010 cannot be used -> mend"
    ):
        cleaning.check()


@pytest.mark.parametrize(
    ("text", "names"), [(",a\n0,1\n", ["unnamed_1", "a"]), ("a,b,\n1,2,\n", ["a", "b", "unnamed_3"])]
)
def test_columns_without_a_name_get_one_and_it_is_said(read, text, names):
    found, _, cleaning = read(text)
    assert found == names
    assert cleaning.notes == [f"columns without a name are called {next(n for n in names if len(n) > 1)}"]


def test_a_wrong_separator(read):
    with pytest.raises(DataError, match=r"a.csv: ';' parts no fields, ',' does -> --data.separator ','"):
        read(PLAIN, separator=";")
    assert read("a b\n1 2\n", separator=" ")[0] == ["a", "b"]


def test_the_separator_is_found_where_fields_have_others(read):
    assert read("a;b;c\n1,5;2,5;x\n1,5;3,5;y, z\n")[0] == ["a", "b", "c"]
    assert read('a,b\n"1;2;3","x"\n"1;2;3","y"\n')[0] == ["a", "b"]


def test_a_file_that_is_not_of_its_encoding(read):
    with pytest.raises(DataError, match=r"a.csv, row 1: it is not utf-16 -> close its quotes, save it as CSV in UTF-8"):
        read("größe,b\n1,2\n1,2\n\n", encoding="utf-16")


def test_rows_of_several_files_are_numbered_each(tmp_path):
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(PLAIN)
    cleaning = Cleaning()
    for name, first in (("a.parquet", 1), ("a.csv", 2), ("a.parquet", 1), ("a.csv", 2)):
        assert next(iter(pl.concat(blocks(tmp_path / name, Format(), cleaning))[ROW])) == first
    assert cleaning.came_in == 8


def test_parquet_is_told_by_its_name(read, tmp_path):
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    frame.write_parquet(tmp_path / "a.pq")
    read_again = next(blocks(tmp_path / "a.pq", Format(), Cleaning()))
    assert read_again.equals(frame.with_columns(pl.Series(ROW, [1, 2])))
    whole = (tmp_path / "a.pq").read_bytes()
    for data in (PLAIN.encode(), whole[:-20]):
        with pytest.raises(DataError, match=r"a.parquet: .* -> give a whole Parquet file, or a CSV"):
            read(data, "a.parquet")
    with pytest.raises(DataError, match=r"a.csv: it is empty, .* or no text|row 1: it is not utf-8"):
        read(whole)
