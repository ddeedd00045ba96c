"""Files as they come: which rows they have, or the one line that says why they cannot be read."""

import gzip
from dataclasses import replace

import polars as pl
import pytest

from src.data import delimited
from src.data.delimited import ROW, Format, blocks
from src.data.report import MAX_LISTED, Cleaning
from src.run.errors import ConfigError, DataError


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


REFUSED = {
    "empty": ("", "a.csv: it is empty -> give"),
    "blank": (" \n\n", "a.csv: it is empty -> give"),
    "header alone": ("a,b\n", "a.csv: there are no rows -> give"),
    "header alone without a line end": ("a,b", "a.csv: there are no rows -> give"),
    "header and empty lines": ("a,b\n\n\n", "a.csv: there are no rows -> give"),
    "two names": ("a,b, a\n1,2,3\n", "a.csv: two columns are called 'a' -> rename one"),
    "a title": ("Sales\na,b\n1,2\n3,4\n", "not in row 1 -> --data.skip_rows 1, if they are a, b"),
    "titles": ("Sales\nof, 2020\n\na,b,c,d\n1,2,3,4\n5,6,7,8\n", "row 1 -> --data.skip_rows 3, if they are a, b, c, d"),
    "blank lines above": ("\n\na,b\n1,2\n", "row 1 -> --data.skip_rows 2, if they are a, b"),
    "Excel's first line": ("sep=;\na;b\n1;2\n", "not in its first row -> --data.skip_rows 1"),
    "no names": ("1,2\n3,4\n", "a.csv: row 1 has numbers, as 1, not names of columns -> write a row of names above"),
    "few names": ("5.1,3.5,1.4,setosa\n4.9,3.0,1.4,setosa\n", "a.csv: row 1 has numbers, as 5.1, not names"),
    "a name too few": ("a,b\n1,2,3\n4,5,6\n", "the header has 2 names, the rows 3 fields -> name the column"),
    "latin-1": ("a,b\n1,2\ncafé,2\n".encode("latin-1"), "line 3 is not utf-8 (byte 0xe9) -> .* such as cp1252"),
    "latin-1 at the end": (PLAIN.encode() + b"\xe9", "line 4 is not utf-8 (byte 0xe9)"),
    "latin-1 with cr": (b"a,b\r1,2\r\xe9,3\r", "line 3 is not utf-8 (byte 0xe9)"),
    "bad far on": (b"a,b\n" + b"1,2\n" * 5000 + b"\xe9,2\n", "line 5002 is not utf-8 (byte 0xe9)"),
    "utf-16": (PLAIN.encode("utf-16"), "line 1 is not utf-8 (byte 0xff) -> .* data.encoding, such as utf-16"),
    "utf-16 without its mark": (PLAIN.encode("utf-16-le"), "line 1 has a zero byte -> .* such as utf-16"),
    "zero byte": (b"a,b\n1,2\n3,\0\n", "line 3 has a zero byte -> give a text file"),
    "Excel": (b"PK\x03\x04abc", "a.csv: it is an Excel or zip file -> save it as CSV"),
    "old Excel": (b"\xd0\xcf\x11\xe0abc", "a.csv: it is an Excel file -> save it as CSV"),
    "open quote": ('a,b\n1,2\n"3,4\n5,6\n7,8\n', "a.csv, row 3: ragged: 1 fields over 3 lines, as where a quote"),
    "open quote at the end": ('a,b\n1,2\n3,"4\n5,6\n7,8\n', "a.csv, row 3: a quote is not closed"),
    "open quote in the header": ('a,"b\n1,2\n3,4\n', "a.csv: there are no rows -> close the quote in its header"),
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
    with pytest.raises(DataError, match=r"a.csv, row 14: a quote is not closed, or the row is too long -> close it"):
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


def test_separators_at_the_end_of_rows_alone(read):
    names, rows, _ = read("a,b\n1,2,\n3,4,\n")
    assert (names, rows) == (["a", "b", "unnamed_3"], [["1", "2", "", 2], ["3", "4", "", 3]])


def test_a_wrong_separator(read):
    with pytest.raises(DataError, match=r"a.csv: ';' parts no fields, ',' does -> --data.separator ','"):
        read(PLAIN, separator=";")
    assert read("a b\n1 2\n", separator=" ")[0] == ["a", "b"]


def test_the_separator_is_found_where_fields_have_others(read):
    assert read("a;b;c\n1,5;2,5;x\n1,5;3,5;y, z\n")[0] == ["a", "b", "c"]
    assert read('a,b\n"1;2;3","x"\n"1;2;3","y"\n')[0] == ["a", "b"]


def test_an_encoding_that_is_not_known(read):
    with pytest.raises(ConfigError, match=r"data.encoding: Python knows no encoding utf8x -> such as"):
        read(PLAIN, encoding="utf8x")


def test_parquet_is_told_by_its_first_bytes(read, tmp_path):
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    frame.write_parquet(tmp_path / "a.data")
    read_again = next(blocks(tmp_path / "a.data", Format(), Cleaning()))
    assert read_again.equals(frame.with_columns(pl.Series(ROW, [1, 2])))
    whole = (tmp_path / "a.data").read_bytes()
    for name, data in (("a.parquet", PLAIN.encode()), ("a.parquet", whole[:-20]), ("a.csv", whole[:-20])):
        with pytest.raises(DataError, match=rf"{name}: .* -> give a whole Parquet file, or a CSV"):
            read(data, name)
