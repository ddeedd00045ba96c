"""Files of columns as a data module reads them."""

from datetime import datetime

import polars as pl
import pytest

from src.data.delimited import ROW
from src.data.frame import FrameDataModule, require
from src.data.report import Cleaning
from src.run.errors import ConfigError, DataError

pytestmark = pytest.mark.in_fork  # polars


class Rows(FrameDataModule):
    def depends_on(self):
        return self.reading(), [self.file]

    def build(self, cleaning, fitted):
        raise NotImplementedError

    open = measure = build


class Made(Rows):
    def load(self) -> pl.DataFrame:
        return pl.DataFrame({"t": [datetime(2020, 1, 1)] * 2, "x": [1.5, None], "shop": ["a", "b"]})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("shop,zip,price\na,01234,$5\nb,90210,$6\n")
    return path


def test_rows_of_a_file(file):
    cleaning = Cleaning()
    frame, columns = Rows(file=str(file), drop=["shop"]).read(cleaning)
    assert frame.to_dict(as_series=False) == {"zip": ["01234", "90210"], "price": [5, 6], ROW: [2, 3]}
    assert [c["kind"] for c in columns] == ["category", "number"]
    assert cleaning.notes == [
        "zip (category): 2 of 2 values are numbers, '01234' has leading zeros, over 16 digits or an E"
    ]
    assert cleaning.came_in == 2


def test_columns_that_are_known_may_lie_elsewhere(file):
    _, columns = Rows(file=str(file)).read(Cleaning())
    file.write_text("more;price;zip;shop\n1;7;1;c\n")
    cleaning = Cleaning()
    frame, again = Rows(file=str(file)).read(cleaning, columns)
    assert (frame.rows(), again, cleaning.notes) == ([("c", "1", 7, 2)], columns, [])


def test_a_frame_of_ones_own():
    frame, columns = Made(types={"shop": "id"}).read(Cleaning())
    assert [c["kind"] for c in columns] == ["date", "number", "id"]
    assert frame.rows() == [(datetime(2020, 1, 1), 1.5, "a", 1), (datetime(2020, 1, 1), None, "b", 2)]
    with pytest.raises(ConfigError, match=r"Rows: no data is named -> give data.file"):
        Rows().read(Cleaning())


def test_a_file_that_is_none(file):
    for path, what in ((file.parent, "is a folder"), (file.with_name("b.csv"), "is not there")):
        with pytest.raises(DataError, match=rf"data.file: {path} {what} -> name a CSV or Parquet file"):
            Rows(file=str(path)).read(Cleaning())


@pytest.mark.parametrize(
    "options",
    [
        *({"skip_rows": -1}, {"separator": ";;"}, {"separator": ""}, {"date_format": "yyyy-mm-dd"}),
        *({"encoding": "utf8x"}, {"encoding": "hex"}),
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(ConfigError, match=rf"data.{next(iter(options))}: .* -> "):
        Rows(**options)


def test_what_the_rows_depend_on(file):
    one = Rows(file=str(file)).reading()
    assert "class Rows" in "".join(one["source"])
    assert "def numbers" in "".join(one["source"])
    for change in ({"decimal": ","}, {"types": {"zip": "number"}}, {"drop": ["zip"]}):
        assert Rows(file=str(file), **change).reading() != one


def test_a_column_that_an_option_names():
    columns = [{"name": "price", "kind": "number"}, {"name": "shop", "kind": "category"}]
    assert require("target", "price", columns, "number") == columns[0]
    for given, kind, said in (
        (None, None, "data.target: is not given -> take one of price, shop"),
        ("prize", None, "data.target: there is no column prize; did you mean price.* -> take one of price, shop"),
        ("shop", "number", "data.target: column shop is category, not number -> .* data.types: {shop: number}"),
    ):
        with pytest.raises(DataError, match=said):
            require("target", given, columns, kind)
