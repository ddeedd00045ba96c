import json

import numpy as np
import polars as pl
import pytest
import torch
from flats import N, columns

from src.data.tables.features import MISSING, RARE
from src.data.tables.module import TableDataModule
from src.models.base import Model
from src.run.errors import ConfigError, DataError

pytestmark = pytest.mark.in_fork  # polars


def houses(n: int = N, seed: int = 0) -> pl.DataFrame:
    return pl.DataFrame(columns(n, seed))


@pytest.fixture
def make(tmp_path):
    """make(frame, ...) -> the data module of a CSV with these rows, set up."""

    def made(frame: pl.DataFrame | str, stage: str = "fit", fitted=None, name: str = "a.csv", **options):
        path = tmp_path / name
        path.write_text(frame) if isinstance(frame, str) else frame.write_csv(path)
        how = {"target": "price", "batch_size": 16, "cache_dir": str(tmp_path / ".cache")} | options
        data = TableDataModule(file=str(path), **how)
        data.fitted = fitted
        data.setup(stage)
        return data

    return made


def rows_of(data: TableDataModule, split: str) -> np.ndarray:
    """Places in the file, from 0."""
    return data.stored(split, "rows") - 2


# Features


def test_a_column_of_each_kind_becomes_what_a_network_takes(make):
    data = make(houses(), scale="standard", split="random")
    x, targets = data.splits["train"].x, data.splits["train"].targets
    numbers = ["size", "sold.trend", "sold.weekday", "sold.year_sin", "sold.year_cos", "rooms"]
    assert data.report["columns"]["sold"]["features"] == numbers[1:5]
    assert data.facts == {"in_features": 6, "cardinalities": [5, 40]}
    assert data.report["left_out"] == {"listing": "id", "price": "target"}
    assert x.dtype == targets.dtype == torch.float32
    assert x[:, :6].mean(0).abs().max() < 1e-5
    assert (x[:, :6].std(0) - 1).abs().max() < 0.01
    assert targets.mean().abs() < 1e-5
    assert sorted(set(x[:, 6].tolist())) == [2, 3, 4]  # the three cities
    prices = houses()["price"].to_numpy()[rows_of(data, "train")]
    scaled = targets.double() * data.statistics["targets"]["std"][0] + data.statistics["targets"]["mean"][0]
    assert np.allclose(scaled, prices, rtol=1e-6)


def test_quantiles_make_any_distribution_normal(make):
    values = np.exp(np.random.default_rng(0).normal(size=4000) * 3)
    values[:400] = 0.0  # many are the same
    frame = pl.DataFrame({"a": values, "price": np.random.default_rng(1).normal(size=4000)})
    x = make(frame).splits["train"].x[:, 0]
    assert x.std() == pytest.approx(1, abs=0.1)
    assert x.abs().max() < 4.5
    assert x.unique(return_counts=True)[1].max() > 200
    (lowest,) = (x[x == x.min()].unique(),)
    assert lowest == pytest.approx(-1.645, abs=0.1)  # the middle of the lowest tenth


def test_what_is_fitted_is_fitted_on_train_alone(make):
    frame, base = houses(), make(houses(), split="random")
    held = np.concatenate([rows_of(base, split) for split in ("val", "test")])
    other = frame.with_row_index("i").with_columns(
        pl.when(pl.col("i").is_in(held)).then(pl.col("size") * 1000).otherwise("size").alias("size"),
        pl.when(pl.col("i").is_in(held)).then(pl.lit("Dresden")).otherwise("city").alias("city"),
        pl.when(pl.col("i").is_in(held)).then(pl.col("price") * 7).otherwise("price").alias("price"),
    )
    changed = make(other.drop("i"), split="random")
    assert changed.statistics == base.statistics
    assert torch.equal(changed.splits["train"].x, base.splits["train"].x)
    assert set(changed.splits["test"].x[:, base.facts["in_features"]].tolist()) == {RARE}
    assert json.loads(json.dumps(base.statistics)) == base.statistics  # plain data


def test_missing_values_and_rare_categories(make):
    frame = houses().with_columns(
        pl.when(pl.int_range(N) % 5 == 0).then(None).otherwise("rooms").alias("rooms"),
        pl.when(pl.int_range(N) % 7 == 0).then(pl.lit("n/a")).otherwise("city").alias("city"),
    )
    frame[[1, 2], "city"] = "Ulm"
    data = make(frame.drop("sold", "owner"), split="random")
    assert data.report["columns"]["rooms"]["features"] == ["rooms", "rooms is missing"]
    for split, part in data.splits.items():
        rows = rows_of(data, split)
        gaps = torch.tensor(rows % 5 == 0)
        assert torch.equal(part.x[:, 2].bool(), gaps)
        assert part.x[gaps, 1].eq(0).all()
        codes = part.x[:, 3].numpy()
        assert (codes[rows % 7 == 0] == MISSING).all()
        assert (codes[np.isin(rows, [1, 2])] == RARE).all()
        assert data.report["columns"]["rooms"]["missing"][split] == pytest.approx((rows % 5 == 0).mean(), abs=1e-4)


def test_one_hot(make):
    frame = houses().drop("sold", "owner")
    frame[[0, 1], "city"] = "Ulm"
    codes, numbers = make(frame, split="random"), make(frame, split="random", one_hot=True)
    assert numbers.facts == {"in_features": 6, "cardinalities": []}
    one_hot = numbers.splits["train"].x[:, 1:5]
    assert numbers.report["columns"]["city"]["features"] == [
        f"city = {c}" for c in ("others", "Aachen", "Bonn", "Celle")
    ]
    assert one_hot.sum(1).eq(1).all()
    assert torch.equal(one_hot.argmax(1), codes.splits["train"].x[:, 2].long().sub(1).clamp(min=0))


def test_a_network_that_takes_no_codes_is_refused(make):
    from types import SimpleNamespace

    from src.networks.mlp import MLP

    data = make(houses())
    model = Model(MLP, torch.optim.AdamW)
    model._trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(ConfigError, match=r"MLP takes no cardinalities, which the data have -> data.one_hot true"):
        model.configure_model()


def test_codes_stay_exact_in_bfloat16(make):
    data = make(houses())
    data.trainer = type("T", (), {"precision_plugin": type("P", (), {"convert_input": lambda self, x: x.bfloat16()})()})
    batch = data.splits["train"][torch.arange(4)]
    assert data.on_after_batch_transfer(batch, 0)["x"].dtype == torch.float32
    data.facts["cardinalities"] = []
    assert data.on_after_batch_transfer(batch, 0)["x"].dtype == torch.bfloat16


# Targets


def test_two_numbers_are_classes_and_types_say_otherwise(make):
    frame = houses().with_columns((pl.col("price") > 200_000).cast(pl.Int64).alias("price"))
    data = make(frame)
    assert data.statistics["class_names"] == ["0", "1"]
    assert data.facts["num_classes"] == 2
    assert data.splits["train"].targets.dtype == torch.int64
    shares = [part.targets.float().mean() for part in data.splits.values()]
    assert max(shares) - min(shares) < 0.02  # stratified
    assert make(frame, types={"price": "number"}).splits["train"].targets.dtype == torch.float32


def test_other_numbers_are_classes_if_said_so_in_their_order(make):
    frame = houses().with_columns((pl.col("rooms") * 2).alias("rooms"))
    data = make(frame, target="rooms", types={"rooms": "category"})
    assert data.statistics["class_names"] == ["2", "4", "6", "8", "10", "12"]
    names = [int(data.statistics["class_names"][k]) for k in data.splits["test"].targets]
    assert names == frame["rooms"].gather(rows_of(data, "test")).to_list()


# Splits


def test_splits_are_parts_of_the_rows_and_the_same_for_each_seed(make):
    first, second = make(houses(), split="random"), make(houses(), split="random", seed=1)
    rows = {split: rows_of(first, split) for split in first.splits}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(N))
    assert {split: len(r) for split, r in rows.items()} == {"train": 280, "val": 40, "test": 80}
    assert all((rows_of(second, split) == r).all() for split, r in rows.items())


def test_groups_stay_whole(make):
    sizes = np.r_[np.repeat(np.arange(60), 3), np.repeat(60, 220)]  # one has more than half of the rows
    frame = houses().with_columns(pl.Series("owner", [f"o{i}" for i in sizes]))
    data = make(frame, split="group", split_by="owner")
    groups = {split: set(frame["owner"].gather(rows_of(data, split))) for split in data.splits}
    assert sum(map(len, groups.values())) == 61 == len(set.union(*groups.values()))
    assert {split: len(rows_of(data, split)) for split in ("val", "test")} == {"val": 39, "test": 78}
    assert "owner" not in data.report["columns"] or "features" not in data.report["columns"]["owner"]


def test_time_has_no_look_ahead_and_no_trend(make):
    frame = houses()
    data = make(frame, split="time", split_by="sold")
    days = {split: frame["sold"].gather(rows_of(data, split)) for split in data.splits}
    assert days["train"].max() < days["val"].min() <= days["val"].max() < days["test"].min()
    assert "sold.trend" not in data.report["columns"]["sold"]["features"]
    assert len(days["test"]) == pytest.approx(80, abs=4)


def test_a_column_can_say_the_splits(make):
    words = ["train", "Validation", "TEST", "train"] * (N // 4)
    data = make(houses().with_columns(pl.Series("part", words)), split="column", split_by="part")
    assert {split: set(rows_of(data, split) % 4) for split in data.splits} == {"train": {0, 3}, "val": {1}, "test": {2}}
    only = make(houses().with_columns(pl.Series("part", ["train", "test"] * (N // 2))), split="column", split_by="part")
    assert set(rows_of(only, "test") % 2) == {1}
    assert len(rows_of(only, "val")) == 20  # a tenth of the others


def test_files_of_their_own(make, tmp_path):
    houses(50, 1).select(reversed(houses().columns)).write_csv(tmp_path / "test.csv")
    data = make(houses(), test_file=str(tmp_path / "test.csv"))
    assert data.num_samples == {"train": 360, "val": 40, "test": 50}
    assert rows_of(data, "test").tolist() == list(range(50))


def test_a_file_of_its_own_may_lack_columns_that_are_not_used(make, tmp_path):
    houses(50, 1).drop("listing").write_csv(tmp_path / "test.csv")
    data = make(houses(), test_file=str(tmp_path / "test.csv"))
    assert data.num_samples["test"] == 50
    assert "test.csv has no listing" in data.report["note"]
    for given, lacks in (({}, "size"), ({"row_key": "listing"}, "listing")):
        houses(50, 1).drop(lacks).write_csv(tmp_path / "test.csv")
        with pytest.raises(DataError, match=rf"test.csv: there is no column {lacks}"):
            make(houses(), test_file=str(tmp_path / "test.csv"), **given)


# Rows and columns that are left out


def test_copies_are_left_out_of_train_and_val(make):
    frame = pl.concat([houses(), houses()[:30]])
    data = make(frame, split="random")
    rows = {split: rows_of(data, split) % N for split in data.splits}
    assert not set(rows["train"]) & (set(rows["val"]) | set(rows["test"]))
    assert not set(rows["val"]) & set(rows["test"])
    assert len(set(rows["train"])) == len(rows["train"])
    counts = data.report["removed_counts"]
    assert sum(counts.values()) == 430 - sum(map(len, rows.values()))
    assert set(counts) == {"duplicate", "also in test", "also in val"}


def test_equal_rows_that_can_be_coincidence_stay(make):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"a": rng.integers(0, 3, 200), "b": rng.integers(0, 3, 200), "price": rng.integers(0, 5, 200)})
    data = make(frame)
    assert sum(data.num_samples.values()) == 200
    assert "rows are equal to others, which can be coincidence: they stay" in data.report["note"]


LEAKS = {
    "copy": lambda price: price,
    "another unit": lambda price: (price * 1.08 + 3).round(1),
    "order": lambda price: (price / 1e5) ** 9,
    "bands": lambda price: (price // 2000).cast(pl.Int64).cast(pl.String) + "k",
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_column_that_tells_the_target_is_refused(make, name):
    frame = pl.concat([houses(2000, seed) for seed in range(3)])
    frame = frame.with_columns(gross=LEAKS[name](frame["price"])).drop("listing", "owner")
    message = r"column gross all but tells the target price \(.*\) -> data.drop: \[gross\], or data.keep: \[gross\]"
    with pytest.raises(DataError, match=message):
        make(frame)
    assert make(frame, invalid="skip").report["left_out"]["gross"].startswith("tells the target, ")
    assert "features" in make(frame, keep=["gross"]).report["columns"]["gross"]


def test_a_column_that_tells_a_rare_class_is_refused_but_not_a_good_one(make):
    rng = np.random.default_rng(0)
    sick = rng.random(2000) < 0.03
    frame = houses(2000).drop("price").with_columns(sick=pl.Series(np.where(sick, "yes", "no")))
    died = frame.with_columns(died=pl.Series([f"2020-01-{i % 28 + 1:02}" if s else None for i, s in enumerate(sick)]))
    with pytest.raises(DataError, match="column died all but tells the target sick"):
        make(died, target="sick")
    weak = frame.with_columns(temperature=pl.Series((36 + 3 * sick + rng.normal(0, 1.0, 2000)).round(1)))
    assert "features" in make(weak, target="sick").report["columns"]["temperature"]


def test_columns_that_say_nothing_are_left_out_and_told(make):
    frame = houses().with_columns(country=pl.lit("D"), nothing=pl.lit(None), note=pl.col("listing") + " is nice " * 20)
    data = make(frame, row_key="listing", min_count=20)
    expected = {"listing": "key", "price": "target", "country": "constant, or rare", "nothing": "empty", "note": "text"}
    assert data.report["left_out"] == expected | {"owner": "constant, or rare"}
    assert "3 numbers" not in data.report["note"]
    assert data.report["note"].startswith("2 numbers, 1 category, 1 date; left out: listing (key), ")


def test_outliers_are_counted_and_do_no_harm(make):
    frame = houses()
    train = rows_of(make(frame, split="random"), "train")
    frame[int(train[0]), "size"] = 1e12
    for scale in ("standard", "quantile"):
        data = make(frame, split="random", scale=scale)
        assert "outliers in train: size (1)" in data.report["note"]
        assert data.splits["train"].x[1:, 0].std() > 0.5


ERRORS = {
    "no target": ({}, {"target": "prize"}, "data.target: there is no column prize; did you mean price"),
    "a gap": ({"price": [None] + [1.5, 2.5, 3.5] * 99 + [1.0] * 102}, {}, "row 2: no target: column price is empty"),
    "constant": ({"price": [3.0] * N}, {}, "column price is 3.0 in all rows -> there is nothing to predict"),
    "empty": ({"price": [None] * N}, {}, "column price has no values"),
    "text": ({}, {"target": "listing"}, "column listing is id -> data.types"),
    "no key": ({}, {"row_key": "nr"}, "data.row_key: there is no column nr"),
    "no group": ({}, {"split": "group", "split_by": "family"}, "data.split_by: there is no column family"),
    "no time": ({}, {"split": "time", "split_by": "city"}, "column city is category, not date"),
    "one time": ({"sold": ["2020-01-01"] * N}, {"split": "time", "split_by": "sold"}, "too few different times"),
    "two groups": (
        {"owner": ["a", "b"] * 200},
        {"split": "group", "split_by": "owner"},
        "has 2 groups -> take one with",
    ),
    "words": ({}, {"split": "column", "split_by": "city"}, "column city has 'aachen', 'bonn', 'celle' -> it may have"),
    "too large": (
        {"price": [1e300, -1e300] * 200},
        {"types": {"price": "number"}},
        "has the standard deviation inf",
    ),
    "small class": (
        {"city": ["Ulm"] + ["Bonn", "Celle", "Jena"] * 133},
        {"target": "city"},
        "row 2: in fewer than 3 rows: column city is 'Ulm'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(make, name):
    columns, options, message = ERRORS[name]
    with pytest.raises(DataError, match=message) as error:
        make(houses().with_columns(**{n: pl.Series(v) for n, v in columns.items()}), **options)
    assert "\n" not in str(error.value)
    assert " -> " in str(error.value)


@pytest.mark.parametrize("name", ["a gap", "small class"])
def test_such_rows_can_be_left_out(make, name):
    columns, options, _ = ERRORS[name]
    frame = houses().with_columns(**{n: pl.Series(v) for n, v in columns.items()})
    data = make(frame, invalid="skip", **options)
    assert sum(data.report["removed_counts"].values()) == 1
    assert sum(data.num_samples.values()) == N - 1


def test_a_class_by_a_word_for_missing_is_named_and_can_be_kept(make):
    frame = houses().with_columns(fence=pl.Series(["None", "wood", "wire", ""] * 100)[:400]).drop("price")
    frame = frame.filter(pl.col("fence") != "")
    with pytest.raises(
        DataError,
        match=r"row 2: no target: column fence is 'None'; 99 more .* -> fill it in, or data.present: \[None\]",
    ):
        make(frame, target="fence")
    assert make(frame, target="fence", present=["None"]).statistics["class_names"] == ["None", "wire", "wood"]


def test_test_is_not_trained_on(make, tmp_path):
    houses().write_csv(tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"800 rows, .*400 also in test: train is empty -> give more rows"):
        make(houses(), test_file=str(tmp_path / "test.csv"))


@pytest.mark.parametrize("text", ["a,price\n1,2\n", "a,price\n1,2\n2,3\n", "a,price\n"])
def test_too_few_rows(make, text):
    with pytest.raises(DataError, match=" -> "):
        make(text)


def test_options_that_contradict(make):
    alone = [{"row_key": "price"}, {"split": "group"}, {"split_by": "city"}, {"dataset": "wine"}]
    for options in (*alone, {"val_frac": 0.5, "test_frac": 0.5}):
        with pytest.raises(ConfigError, match=r"data.(split|val_frac|dataset|target)"):
            make(houses(), **options)
    with pytest.raises(ConfigError, match="stratified, but price is a number"):
        make(houses(), split="stratified")
    with pytest.raises(ConfigError, match=r"give data.file or data.dataset"):
        TableDataModule().prepare_data()


# Other data


def test_other_files_are_read_by_the_names_of_their_columns(make):
    trained = make(houses(), split="random", row_key="listing")
    other = houses(60, 7)
    shuffled = other.select(reversed(other.columns)).with_columns(extra=pl.lit("x"))
    data = make(shuffled, fitted=trained.state_dict(), name="b.csv", split="random", row_key="listing")
    assert data.num_samples["test"] == 60
    assert data.statistics == trained.statistics
    assert "columns that train has not: extra" in data.report["note"]
    x = trained.encode(other.with_columns(pl.col("sold").str.to_datetime(), pl.col("rooms").cast(pl.Float64)))
    assert torch.equal(data.splits["test"].x, x)
    known = data.keys("test", np.array([0, 59]))
    assert known["listing"] == ["A0000", "A0059"]
    assert known["target"].tolist() == other["price"].gather([0, 59]).to_list()


def test_one_category_written_in_two_ways_is_one(make, tmp_path):
    more = {
        "flag": ["True", "False"] * 200,
        "zip": ["01000", "90210", "20000", "30000"] * 100,
        "grade": ["1", "2"] * 200,
    }
    frame = houses().with_columns(**{name: pl.Series(values) for name, values in more.items()})
    trained = make(frame, split="random", types={"grade": "category"})
    other = frame[:60].with_columns(
        pl.col("flag") == "True", pl.col("zip").cast(pl.Int64), pl.col("grade").cast(pl.Float64)
    )
    other.write_parquet(tmp_path / "b.parquet")
    same = [make(frame[:60], fitted=trained.state_dict(), name="b.csv")]
    for file in ("b.parquet", "c.csv"):
        other.write_csv(tmp_path / "c.csv")
        data = TableDataModule(file=str(tmp_path / file), target="price", cache_dir=str(tmp_path / ".cache"))
        data.fitted = trained.state_dict()
        data.setup("test")
        same.append(data)
    assert len({data.splits["test"].x.numpy().tobytes() for data in same}) == 1
    assert not [data for data in same if "that train has not" in data.report["note"]]


def test_a_category_of_which_no_value_is_known_is_refused(make):
    state = make(houses(), split="random").state_dict()
    other = houses(60, 7).with_columns(pl.col("city").str.to_lowercase())
    line = r"b.csv: column city has no value that train has: 'bonn', not 'Aachen', .* -> write .* --data.invalid skip"
    with pytest.raises(DataError, match=line):
        make(other, fitted=state, name="b.csv", split="random")
    data = make(other, fitted=state, name="b.csv", split="random", invalid="skip")
    assert "60 rows have a city that train has not, as 'bonn'" in data.report["note"]


def test_other_files_without_a_target_or_with_news(make):
    state = make(houses(), split="random").state_dict()
    other = houses(60, 7).drop("price")
    other[[3, 4], "city"] = "Rome"
    data = make(other, "predict", fitted=state, name="b.csv", split="random")
    assert "2 rows have a city that train has not, as 'Rome'" in data.report["note"]
    assert data.keys("test", np.array([5]))["row"] == [7]
    assert np.isnan(data.keys("test", np.array([5]))["target"])
    with pytest.raises(DataError, match=r"60 of 60 rows have no price -> fill it in, or take python -m src.predict"):
        make(other, "test", fitted=state, name="b.csv", split="random")
    with pytest.raises(DataError, match="there is no column size"):
        make(other.drop("size"), "predict", fitted=state, name="c.csv", split="random")


def test_rows_of_other_files_may_have_another_key_or_none(make):
    state = make(houses(), split="random", row_key=["listing", "owner"]).state_dict()
    data = make(houses(60, 7).drop("listing", "owner"), fitted=state, name="b.csv", row_key=["listing", "owner"])
    assert list(data.keys("test", np.array([0]))) == ["row", "target"]
    assert "no column listing, owner: rows have their number in the file" in data.report["note"]
    data = make(houses(60, 7).drop("listing"), fitted=state, name="c.csv", row_key=["listing", "owner"])
    assert {n: v[0] for n, v in data.keys("test", np.array([0])).items() if n != "target"} == {
        "owner": "owner 0",
        "row": 2,
    }
    data = make(houses(60, 7).with_columns(nr=pl.int_range(60)), fitted=state, name="d.csv", row_key="nr")
    assert data.keys("test", np.array([3, 5]))["nr"].tolist() == [3, 5]


def test_another_target_than_the_models_is_refused(make):
    state = make(houses(), split="random").state_dict()
    with pytest.raises(ConfigError, match=r"data.target: rooms, but the model predicts price -> leave"):
        make(houses(), fitted=state, split="random", target="rooms")


def test_classes_that_train_lacks(make):
    frame = houses().drop("price")
    state = make(frame, target="city").state_dict()
    other = frame[:60]
    other[2, "city"] = "Rome"
    with pytest.raises(DataError, match=r"row 4: train has no such class: column city is 'Rome'"):
        make(other, fitted=state, name="b.csv", target="city")
    data = make(other, fitted=state, name="b.csv", target="city", invalid="skip")
    assert data.num_samples["test"] == 59
    assert "target" not in data.keys("test", np.arange(2))


def test_a_set_of_your_own(tmp_path):
    class Houses(TableDataModule):
        def load(self) -> pl.DataFrame:
            return houses(300).drop("listing", "owner").with_columns(pl.col("city").cast(pl.Categorical))

    data = Houses(target="price", cache_dir=str(tmp_path))
    data.setup("fit")
    assert sum(data.num_samples.values()) == 300
    assert data.facts["cardinalities"] == [5]


def test_classes_that_differ_in_case_alone_are_refused(make):
    rows = [f"{i * 0.37:.3f},{'yes' if i % 3 else 'No'}" for i in range(60)]
    assert "2 classes: No, yes" in make("a,y\n" + "\n".join(rows), target="y").report["note"]
    rows[4:8] = [row.replace("yes", "Yes") for row in rows[4:8]]
    with pytest.raises(DataError, match="classes 'Yes' and 'yes' -> write them alike"):
        make("a,y\n" + "\n".join(rows), target="y")
