"""What columns are taken for, and what their values become."""

from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone

import polars as pl
import pytest

from src.data.columns import find_columns, read_columns
from src.data.delimited import ROW, Format
from src.data.report import MAX_LISTED, Cleaning
from src.run.errors import DataError

pytestmark = pytest.mark.in_fork  # polars


@pytest.fixture
def read(tmp_path):
    """Reads a column `x` of these values, and gives its description, its values and the cleaning."""

    def column(values, types=None, invalid="error", name="x", **options):
        path, how = tmp_path / "a.csv", replace(Format(), **options)
        quoted = [f'"{value}"' for value in values]
        path.write_text("\n".join([f"key;{name}", *(f"k;{value}" for value in quoted)]))
        columns = find_columns(path, how, types or {})
        cleaning = Cleaning(invalid)
        return columns[name], read_columns(path, how, columns.values(), cleaning)[name].to_list(), cleaning

    return column


NUMBERS = {
    "plain": (["1", " 2 ", "-3.5", "+4", "1e3", ".5", "6."], [1, 2, -3.5, 4, 1000, 0.5, 6]),
    "thousands": (
        ["1,234.5", "1 234", "1'234", "1\u00a0234", "12,345,678", "1,00,000"],
        [1234.5, *[1234] * 3, 12345678, 1e5],
    ),
    "brackets": (["(5)", "6", "(1,000.5)"], [-5, 6, -1000.5]),
    "minus": (["\u22125", "- 5", "5"], [-5, -5, 5]),
    "kg": (["12 kg", "13kg", "1,000 kg"], [12, 13, 1000]),
    "%": (["45 %", "5.5%", "-3%"], [45, 5.5, -3]),
    "$": (["$5", "-$5", "$-5", "$1,000.50", "($7)"], [5, -5, -5, 1000.5, -7]),
    "€": (["€ 3", "4 €", "5€"], [3, 4, 5]),
    "USD": (["USD 3", "4 USD"], [3, 4]),
    "m2": (["30 m2", "41.5m2"], [30, 41.5]),
    "km/h": (["30 km/h", "41.5 km/h"], [30, 41.5]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(read, name):
    given, expected = NUMBERS[name]
    column, values, _ = read(given)
    assert (column["kind"], column.get("unit")) == ("number", None if name.isalpha() and len(name) > 3 else name)
    assert values == expected


def test_decimal_commas(read):
    given = ["1.234,5", "1,5", "2", "3,25 kg", "-0,5", "(1 000,5)", "1.000.000"]
    assert read(given, decimal=",")[1] == [1234.5, 1.5, 2, 3.25, -0.5, -1000.5, 1e6]
    with pytest.raises(DataError, match=r"a.csv: column x has decimal commas, as 1.234,5 -> --data.decimal ','"):
        read(given)
    with pytest.raises(DataError, match=r"row 13: no number: column x is '1.5'"):
        read(["1,5"] * 11 + ["1.5"], decimal=",")


def test_thousands_that_may_be_decimals_are_asked_for(read, tmp_path):
    for given in (["1,100", "2,250"], ["1,100 kg", "2 kg"], ["-1,100", "999"]):
        with pytest.raises(DataError, match=r"a.csv: column x: is .*1,100.* -?1100, or .* -> data.decimal '.' or ','"):
            read(given, ask_decimal=True)
        assert 1100 in [abs(v) for v in read(given)[1]]
        assert 1.1 in [abs(v) for v in read(given, decimal=",")[1]]
    for given in (["1,100", "2.5"], ["1,234,567", "1,100"]):  # these are no decimal commas
        assert 1100 in read(given, ask_decimal=True)[1]
    with pytest.raises(DataError, match=r"column x has decimal commas, as 0,100 -> --data.decimal ','"):
        read(["1,100", "0,100"], ask_decimal=True)
    path, how, column = tmp_path / "b.csv", Format(ask_decimal=True), {"name": "x", "kind": "number"}
    path.write_text('x,y\n"1,100",a\n')
    cleaning = Cleaning()
    assert read_columns(path, how, [column], cleaning)["x"].to_list() == [1100]
    assert cleaning.notes == ["x: '1,100' is read as 1100"]
    for text in ('x,y\n"1,100","2,5"\n', "x;y\n4,159;a\n"):  # of another file, its columns known
        path.write_text(text)
        with pytest.raises(DataError, match=r"b.csv: column x: is .*, or has it decimals. -> data.decimal"):
            read_columns(path, how, [column], Cleaning())


def test_what_was_decided_is_noted(read):
    assert read(["1,234", "2"])[2].notes == ["x: '1,234' is read as 1234"]
    assert read(["5", "5 kg"])[0]["note"] == "numbers without unit are taken as kg"
    column, values, _ = read(["01234", "90210", "10001"])
    assert (column["kind"], values[0]) == ("category", "01234")
    assert column["note"] == "3 of 3 values are numbers, '01234' has leading zeros, over 16 digits or an E"
    big = [str(2**60 + i) for i in range(100)]
    column, values, _ = read(big)
    assert (column["kind"], values) == ("id", big)
    assert column["note"] == f"100 of 100 values are numbers, '{2**60}' has leading zeros, over 16 digits or an E"
    column, *_ = read(["1"] * 6 + ["unknown"] * 4)
    assert (column["kind"], column["note"]) == ("category", "6 of 10 values are numbers, others not, as 'unknown'")
    assert "note" not in read(["0", "0.5", "10"])[0]


@pytest.mark.parametrize(
    "values",
    [
        *(["true", "false"], ["yes", "no"], ["A12", "B7", "C85"], ["12A", "1B", "3C", "4D", "5E", "6F"]),
        ["<=50K", ">50K"],
        ["0x1F", "0x2"],
        ["12:30", "1:15"],
        ["3-4", "5-6"],
        ["1.2.3", "4.5.6"],
        ["50+", "60+"],
        ["03/04/20", "13/04/20"],
    ],
)
def test_what_is_no_number_or_date_is_a_category(read, values):
    column, found, _ = read(values * 2)
    assert (column["kind"], found) == ("category", values * 2)


def test_mixed_units_are_refused(read):
    with pytest.raises(DataError, match=r"a.csv: column x has numbers in g, kg -> give all in one"):
        read(["5 kg", "500 g"])
    assert read(["5 kg", "500 g"], types={"x": "category"})[1] == ["5 kg", "500 g"]


def test_numbers_with_and_without_percent_are_refused(read, tmp_path):
    with pytest.raises(DataError, match=r"a.csv: column x has numbers with % and without, 1.5% and 0.5 -> write all"):
        read(["0.5", "1.5%", "0.25"])
    path = tmp_path / "b.csv"
    path.write_text("x\n5 %\n0.5\n")
    with pytest.raises(DataError, match=r"b.csv, row 3: no number: column x is '0.5'"):
        read_columns(path, Format(), [{"name": "x", "kind": "number", "unit": "%"}], Cleaning())


def test_codes_with_an_e_are_no_numbers(read):
    column, values, _ = read(["10E0", "13E3", "10E0"])
    assert (column["kind"], values) == ("category", ["10E0", "13E3", "10E0"])
    assert column["note"] == "3 of 3 values are numbers, '10E0' has leading zeros, over 16 digits or an E"
    for given in (["1E3", "1.5E3"], ["1E3", "12"], ["1E+3", "2E+3"]):
        assert read(given)[0]["kind"] == "number"


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e999"])
def test_what_is_not_finite_is_named(read, value):
    with pytest.raises(DataError, match=rf"a.csv, row 21: no number: column x is '{value}' -> mend it"):
        read(["1"] * 19 + [value])


def test_text_in_a_column_of_numbers(read):
    given = ["1"] * 20 + ["abc", "2", "abd"]
    with pytest.raises(
        DataError, match=r"a.csv, row 22: no number: column x is 'abc'; 1 more of 23 cannot be used -> mend"
    ):
        read(given)
    _, values, cleaning = read(given, invalid="skip")
    assert values == [1] * 20 + [2]
    assert [(r["file"], r["reason"], r["detail"]) for r in cleaning.removed] == [
        ("a.csv, row 22", "no number", "column x is 'abc'"),
        ("a.csv, row 24", "no number", "column x is 'abd'"),
    ]
    _, values, cleaning = read(["1", *["abc"] * 3000], types={"x": "number"}, invalid="skip")
    assert (values, cleaning.skipped, len(cleaning.removed)) == ([1], 3000, MAX_LISTED)
    with pytest.raises(DataError, match=r"a.csv: there are no rows that can be used"):
        read(["2020-01-01"], types={"x": "date"}, invalid="skip", date_format="%d.%m.%Y")


def test_missing_values(read):
    words = ["", "NA", "n/a", "NaN", "nan", "NULL", "None", "-", "--", "?", "#N/A", "<NA>", " na ", "."]
    column, values, _ = read(["1", *words, "2"])
    assert (column["kind"], values) == ("number", [1, *[None] * len(words), 2])
    assert read(["a", *words, "b"])[1] == ["a", *[None] * len(words), "b"]
    assert read(["2020-01-01", *words])[1] == [datetime(2020, 1, 1), *[None] * len(words)]
    assert read(words)[0]["kind"] == "empty"


COUNTS = "values are numbers, that are called an id or count rows"


def test_numbers_that_are_called_an_id(read):
    assert read([f"{i % 3}" for i in range(10)], name="store_id")[0]["kind"] == "category"
    column = read([f"{7 - i}" for i in range(5)], name="id")[0]
    assert (column["kind"], column["note"]) == ("id", f"5 of 5 {COUNTS}")


def test_a_first_column_that_counts_rows_is_an_id(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("n,x\n" + "\n".join(f"{i},{i}" for i in range(100)))
    columns = find_columns(path, Format(), {})
    note = f"100 of 100 {COUNTS}"
    assert columns == {"n": {"name": "n", "kind": "id", "note": note}, "x": {"name": "x", "kind": "number"}}


def test_a_day_alone_is_its_midnight(read):
    column, values, _ = read(["2020-04-13", *["2020-04-13 12:30:00"] * 3])
    assert column["format"] == "%Y-%m-%d %H:%M:%S%.f"
    assert values == [MIDNIGHT, NOON, NOON, NOON]


def test_stamps_with_an_offset_are_told(read):
    assert read(["2020-04-13T00:00:00+01:00"])[0]["utc"] is True
    assert "utc" not in read(["2020-04-13T00:00:00"])[0]


def test_ids_and_text(read):
    numbered = [str(i) for i in range(100)]
    assert read(numbered)[0]["kind"] == "number"
    assert read(numbered[::-1], name="PassengerId")[0]["kind"] == "id"
    assert read([f"{i}.5" for i in range(100)], name="id")[0]["kind"] == "number"
    assert read(numbered[::-1], name="humid")[0]["kind"] == "number"
    assert read([f"u{i}" for i in range(100)])[0]["kind"] == "id"
    assert read([f"u{i % 60}" for i in range(100)])[0]["kind"] == "text"
    assert read([f"u{i % 6}" for i in range(100)])[0]["kind"] == "category"
    assert read([f"{'long ' * 20}{i}" for i in range(100)])[0]["kind"] == "text"


MIDNIGHT, NOON = datetime(2020, 4, 13), datetime(2020, 4, 13, 12, 30)
DATES = {
    "2020-04-13": MIDNIGHT,
    "2020-04-13 12:30": NOON,
    "2020-04-13 12:30:00": NOON,
    "2020-04-13T12:30:00": NOON,
    "2020-04-13T12:30:00.25": NOON + timedelta(microseconds=250000),
    "2020-04-13T12:30:00Z": NOON,
    "2020-04-13T14:30:00+02:00": NOON,
    "2020-04-13 14:30:00.000+0200": NOON,
    "2020-04-13 12:30:00 UTC": NOON,
    "2020/04/13": MIDNIGHT,
    "13.04.2020": MIDNIGHT,
    "13.04.2020 12:30": NOON,
    "13/04/2020": MIDNIGHT,
    "4/13/2020 12:30 PM": NOON,
    "13-04-2020": MIDNIGHT,
    "13 Apr 2020": MIDNIGHT,
    "13-Apr-2020": MIDNIGHT,
    "Apr 13, 2020": MIDNIGHT,
    "April 13, 2020": MIDNIGHT,
    "2020-04": datetime(2020, 4, 1),
    "Apr 2020": datetime(2020, 4, 1),
    "04/2020": datetime(2020, 4, 1),
}


@pytest.mark.parametrize("text", DATES)
def test_dates(read, text):
    column, values, _ = read([text, text, ""])
    assert (column["kind"], values) == ("date", [DATES[text]] * 2 + [None])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(("2020", datetime(2020, 1, 1)), ("20200413", MIDNIGHT), ("1586781000", NOON), ("1586781000000", NOON)),
        *(("1586781000000000", NOON), ("1586781000000000000", NOON)),
        ("1586781000.5", NOON + timedelta(seconds=0.5)),
    ],
)
def test_dates_that_are_written_as_numbers(read, value, expected):
    assert read([value] * 3)[0]["kind"] != "date"
    column, values, _ = read([value] * 3, types={"x": "date"})
    assert (column["kind"], values) == ("date", [expected] * 3)


def test_days_as_spreadsheets_count_them_are_refused(read):
    with pytest.raises(DataError, match=r"a.csv: column x has 43934 for a date, a day as spreadsheets .* -> save it"):
        read(["43934", "43935.5"], types={"x": "date"})


def test_dates_that_are_not_clear(read):
    with pytest.raises(
        DataError, match=r"column x: day or month first. -> data.date_format '%d/%m/%Y' or '%m/%d/%Y'|'%m"
    ):
        read(["03/04/2020", "05/06/2020"])
    assert read(["03/04/2020", "05/06/2020"], date_format="%m/%d/%Y")[1][0] == datetime(2020, 3, 4)
    assert read(["03/04/20", "13/04/20"], date_format="%d/%m/%y")[1][0] == datetime(2020, 4, 3)
    assert read(["20200413 12.30"], date_format="%Y%m%d %H.%M")[1] == [NOON]
    assert read(["12:30:00.25 13.4.2020"], date_format="%H:%M:%S.%f %d.%m.%Y")[1] == [NOON + timedelta(seconds=0.25)]
    mixed = "a.csv: column x has dates of several kinds: '.*', '.*' -> write all in one way"
    for other in ("13.04.2020", "2020/04/13 12:00", "2020-04-13T00:00:00Z"):
        with pytest.raises(DataError, match=mixed):
            read(["2020-04-13", other] * 3)
    with pytest.raises(DataError, match=mixed):
        read(["2020-04-13T00:00:00", "2020-04-13T00:00:00Z"] * 3)
    with pytest.raises(
        DataError, match=r"row 22: no date: column x is '2020-04-13T00:00:00Z' -> mend it, or .*date_format"
    ):
        read(["2020-04-13T00:00:00"] * 20 + ["2020-04-13T00:00:00Z"])


def test_types_that_do_not_fit(read):
    with pytest.raises(
        DataError, match=r"data.types: there is no column price; did you mean prices.* -> take one of key"
    ):
        read(["1"], types={"price": "number"}, name="prices")
    with pytest.raises(DataError, match=r"a.csv, row 2: no number: column x is 'abc' -> mend it, or give data.missing"):
        read(["abc"], types={"x": "number"})
    with pytest.raises(DataError, match=r"column x has decimal commas, as 1,5 -> --data.decimal ','"):
        read(["1,5"], types={"x": "number"})
    with pytest.raises(
        DataError, match=r"a.csv, row 2: no date: column x is 'abc' -> mend it, or give data.date_format"
    ):
        read(["abc"], types={"x": "date"})
    assert read(["1", "2"], types={"x": "category"})[1] == ["1", "2"]


def test_types_of_parquet(tmp_path):
    path, zone = tmp_path / "a.parquet", timezone(timedelta(hours=2))
    values = {
        "whole": [1, None],
        "float": [1.5, float("nan")],
        "text_number": ["$1,000", "2"],
        "flag": [True, None],
        "date": [date(2020, 4, 13), None],
        "stamp": [datetime(2020, 4, 13, 14, 30, tzinfo=zone)] * 2,
        "list": [[1, 2], None],
        "record": [{"a": 1}, None],
        "binary": [b"\xff", None],
        "time": [time(1), None],
        "duration": [timedelta(1), None],
        "year": [2020, 2021],
        "none": [None, None],
    }
    pl.DataFrame(values).with_columns(pl.col("none").cast(pl.Int64)).write_parquet(path)
    columns = find_columns(path, Format(), {"year": "date"})
    kinds = {name: column["kind"] for name, column in columns.items()}
    assert kinds == dict.fromkeys(("whole", "float", "text_number"), "number") | {
        **dict.fromkeys(("year", "date", "stamp"), "date"),
        **dict(zip(("flag", "none"), ("category", "empty"), strict=True)),
        **dict.fromkeys(("list", "record", "binary", "time", "duration"), "text"),
    }
    assert columns["stamp"]["utc"] is True
    rows = read_columns(path, Format(), columns.values(), Cleaning()).to_dict(as_series=False)
    assert [rows[name] for name in ("whole", "float", "text_number")] == [[1, None], [1.5, None], [1000, 2]]
    assert (rows["flag"], rows["date"], rows["stamp"]) == (["true", None], [MIDNIGHT, None], [NOON, NOON])
    assert (rows["list"], rows["year"], rows[ROW]) == (
        ["[1, 2]", None],
        [datetime(2020, 1, 1), datetime(2021, 1, 1)],
        [1, 2],
    )


def test_a_unit_that_is_not_the_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x\n5 kg\n500 g\n6\n")
    for unit, left in (({"unit": "kg"}, [5, 6]), ({"unit": "g"}, [500, 6]), ({}, [6])):
        cleaning = Cleaning("skip")
        frame = read_columns(path, Format(), [{"name": "x", "kind": "number", **unit}], cleaning)
        assert (frame["x"].to_list(), cleaning.counts["no number"]) == (left, 3 - len(left))


def test_infinities_of_parquet_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"x": [1.0, float("inf")]}).write_parquet(path)
    with pytest.raises(DataError, match=r"a.parquet, row 2: no number: column x is inf -> mend it"):
        read_columns(path, Format(), [{"name": "x", "kind": "number"}], Cleaning())


def test_columns_of_a_trained_model_in_a_file_of_another_kind(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("more,x,when\n1,2,13.04.2020\n")
    columns = [{"name": "when", "kind": "date"}, {"name": "x", "kind": "category"}]
    assert read_columns(path, Format(), columns, Cleaning()).rows() == [(MIDNIGHT, "2", 2)]
    with pytest.raises(
        DataError, match=r"a.csv: there is no column mor; did you mean more.* -> add .*; there are more, x, when"
    ):
        read_columns(path, Format(), [{"name": "mor", "kind": "number"}], Cleaning())


@pytest.mark.parametrize("text", ["2020-04-13T12:30:00", "13.04.2020 12:30", "13 Apr 2020 12:30 PM"])
def test_dates_of_another_file_may_be_written_otherwise(tmp_path, text):
    path, column = tmp_path / "b.csv", {"name": "x", "kind": "date", "format": "%Y-%m-%d %H:%M:%S%.f"}
    path.write_text(f"x,y\n{text},a\n,a\n")
    cleaning = Cleaning()
    assert read_columns(path, Format(), [column], cleaning)["x"].to_list() == [NOON, None]
    assert len(cleaning.notes) == 1
    assert cleaning.notes[0].startswith("x: dates are read by ")


def test_dates_of_another_file_must_be_clear(tmp_path):
    path, column = tmp_path / "b.csv", {"name": "x", "kind": "date", "format": "%Y-%m-%d"}
    for known in (column, {"name": "x", "kind": "date"}):
        path.write_text("x\n03/04/2020\n05/06/2020\n")
        with pytest.raises(DataError, match=r"b.csv: column x: day or month first"):
            read_columns(path, Format(), [known], Cleaning())
    path.write_text("x\n" + "2020-04-13T12:30:00\n" * 20 + "abc\n")
    with pytest.raises(DataError, match=r"b.csv, row 2: no date: column x is '2020-04-13T12:30:00'; 20 more"):
        read_columns(path, Format(), [column], Cleaning())
    path.write_text("x\n2020-04-13T12:30:00Z\n")  # whether stamps have offsets must be as in train
    with pytest.raises(DataError, match=r"b.csv, row 2: no date: column x is '2020-04-13T12:30:00Z'"):
        read_columns(path, Format(), [column], Cleaning())


def test_rows_that_are_all_ragged(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,c\n1,2\n3,4\n")
    with pytest.raises(
        DataError, match=r"a.csv, row 2: ragged: 2 fields, the header has 3; 1 more of 2 cannot be used"
    ):
        find_columns(path, Format(), {})


def test_columns_that_are_dropped_are_not_looked_at(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1 kg,1\n1 g,2\n")
    assert list(find_columns(path, Format(), {}, ["x"])) == ["y"]
    with pytest.raises(DataError, match=r"data.drop: there is no column z -> take one of x, y"):
        find_columns(path, Format(), {}, ["z"])


def test_more_words_can_mean_that_a_value_is_missing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("size,city\n1.5,k.A.\n-999,Rome\nk.A.,Oslo\n2,Rome\n")
    how = Format(missing=("k.A.", "-999"))
    columns = find_columns(path, how, {})
    assert [c["kind"] for c in columns.values()] == ["number", "category"]
    frame = read_columns(path, how, list(columns.values()), Cleaning())
    assert frame["size"].to_list() == [1.5, None, None, 2.0]
    assert frame["city"].to_list() == [None, "Rome", "Oslo", "Rome"]
    path.write_text("size,city\n-999.0,Rome\n-999.5,-999.00\n")
    assert read_columns(path, how, list(columns.values()), Cleaning()).rows() == [(None, "Rome", 2), (-999.5, None, 3)]
    path.write_text("size;city\n-999,0;Rome\n")
    comma = replace(how, decimal=",")
    assert read_columns(path, comma, list(columns.values()), Cleaning()).rows() == [(None, "Rome", 2)]
    typed = pl.DataFrame({"size": [1.5, -999.0, None, 2.0]})
    assert read_columns(typed, how, [columns["size"]], Cleaning())["size"].null_count() == 2


def test_words_that_usually_mean_that_a_value_is_missing_can_be_values(read):
    given = ["None", "Gable", "None", "none", "NA", ""] * 3
    column, values, _ = read(given, present=("None",))
    assert (column["kind"], values) == ("category", ["None", "Gable", "None", None, None, None] * 3)
    assert read(given)[1].count("None") == 0
