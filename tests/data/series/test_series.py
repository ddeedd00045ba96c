import os
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from src.data.order import TrainOrder
from src.data.series.augment import Jitter, Scaling, normals
from src.data.series.module import SeriesDataModule
from src.data.series.stamps import season_of, step_of
from src.data.series.windows import Windows
from src.run.errors import ConfigError, DataError

pytestmark = pytest.mark.in_fork  # polars


def stamps(start: str, count: int, every: str = "1h") -> pl.Series:
    first = pl.Series([datetime.fromisoformat(start)], dtype=pl.Datetime("us")).new_from_index(0, count)
    unit = every.lstrip("0123456789")
    return first.dt.offset_by(pl.Series([f"{i * int(every.removesuffix(unit))}{unit}" for i in range(count)]))


def hourly(count: int = 300, **columns) -> pl.DataFrame:
    """Column a is the row's number, so that windows can be read off."""
    a = pl.Series(np.arange(count, dtype=float))
    return pl.DataFrame({"date": stamps("2024-01-01", count), "a": a, **columns})


@pytest.fixture
def make(tmp_path):
    def data(frame: pl.DataFrame | str, stage: str = "fit", fitted=None, name: str = "data.csv", **options):
        file = tmp_path / name
        if isinstance(frame, str):
            file.write_text(frame)
        else:
            frame.write_csv(file, datetime_format="%Y-%m-%d %H:%M:%S")
        given = {"file": str(file), "cache_dir": str(tmp_path / ".cache"), "types": {"a": "number"}}
        module = SeriesDataModule(**given | {"batch_size": 8, "window": 12, "horizon": 4} | options)
        module.fitted = fitted
        module.setup(stage)
        return module

    return data


def told(data: SeriesDataModule, batch: dict, name: str = "targets", column: int = 0) -> np.ndarray:
    """Values in the file's own units."""
    known = data.statistics["inputs"]
    return (batch[name][..., column] * known["std"][column] + known["mean"][column]).double().numpy()


def predictions(data: SeriesDataModule, split: str = "test") -> dict[str, list]:
    data.predict_split = split
    batches = list(data.predict_dataloader())
    index = torch.cat([batch["index"] for batch in batches])
    targets = torch.cat([batch["targets"] for batch in batches])[index >= 0].flatten(0, 1)
    found = data.keys(split, index[index >= 0].numpy())
    assert np.allclose(
        found["target"] if "target" in found else found["target_a"],
        told(data, {"targets": targets}),
        atol=1e-2,
        equal_nan=True,
    )
    return found


def test_windows_are_slices_of_the_file(make):
    data = make(hourly())
    assert data.num_samples == {"train": 195, "val": 27, "test": 57}  # of 210, 30 and 60 rows
    for split, first in (("train", 0), ("val", 198), ("test", 228)):
        batch = data.splits[split][torch.tensor([0, 2])]
        assert batch["x"].shape == (2, 12, 1)
        assert np.allclose(told(data, batch, "x"), first + np.array([[0], [2]]) + np.arange(12), atol=1e-4)
        assert np.allclose(told(data, batch), first + np.array([[12], [14]]) + np.arange(4), atol=1e-4)
    assert data.statistics["targets"] == {"names": ["a"], "mean": [104.5], "std": [np.arange(210).std()]}
    assert data.facts == {"window": 12, "horizon": 4, "in_channels": 1, "out_channels": 1, "num_known": 0}
    assert (data.statistics["freq"], data.statistics["season"]) == ("1h", 24)


@pytest.mark.skipif("LEYDEN_DATA_DIR" not in os.environ, reason="needs ETTh1.csv")
def test_etth1_is_evaluated_as_published(make):
    """12, 4 and 4 months, none of the windows dropped; the last value's error is that of Zeng et al. (2023), Repeat."""
    file = Path(os.environ["LEYDEN_DATA_DIR"]) / "ETTh1.csv"
    spans = {"val_from": "2017-06-26", "test_from": "2017-10-24", "until": "2018-02-21"}
    data = make(file.read_text(), types={}, window=96, horizon=96, **spans)
    assert data.num_samples == {"train": 8449, "val": 2785, "test": 2785}
    raw = pl.read_csv(file).drop("date").to_numpy()
    mean, std = raw[:8640].mean(0), raw[:8640].std(0)
    scaled = torch.from_numpy((raw - mean) / std).float()
    for split, first in (("train", 0), ("val", 8640 - 96), ("test", 8640 + 2880 - 96)):
        for k in (0, 1234, len(data.splits[split]) - 1):
            batch = data.splits[split][torch.tensor([k])]
            torch.testing.assert_close(batch["x"][0], scaled[first + k : first + k + 96])
            torch.testing.assert_close(batch["targets"][0], scaled[first + k + 96 : first + k + 192])
    errors = [
        (b["x"][:, -1:] - b["targets"])[b["index"] >= 0].square().flatten(1).mean(1) for b in data.eval_loader("test")
    ]
    assert float(torch.cat(errors).mean()) == pytest.approx(1.295, abs=1e-3)


def test_nothing_is_known_before_its_time(make):
    """What lies after a moment changes nothing before it: statistics, windows, filled holes."""
    frame = hourly(400, b=pl.Series(np.sin(np.arange(400.0))).set(pl.Series(np.arange(400) % 7 == 0), None))
    before = make(frame)
    changed = frame.with_columns(
        pl.when(pl.int_range(400) >= 280).then(pl.col("a", "b") * -9).otherwise(pl.col("a", "b"))
    )
    after = make(changed, name="changed.csv")
    assert before.statistics == after.statistics
    train = torch.arange(len(before.splits["train"]))
    assert len(train) == 265  # all of 280 rows
    one, two = before.splits["train"][train], after.splits["train"][train]
    assert all(torch.equal(one[name].nan_to_num(9), two[name].nan_to_num(9)) for name in one)
    assert torch.equal(before.splits["val"][torch.tensor([0])]["x"], after.splits["val"][torch.tensor([0])]["x"])


def test_holes_are_filled_from_before_and_not_scored(make):
    frame = hourly().with_columns(pl.when(~pl.int_range(300).is_in([20, 21])).then("a").alias("a"))
    frame = frame.filter(~pl.int_range(300).is_in([30, 31, 32]))
    data = make(frame)
    train = data.splits["train"]
    assert np.allclose(told(data, train[torch.tensor([15])], "x")[0, :8], [15, 16, 17, 18, 19, 19, 19, 22], atol=1e-4)
    target = told(data, train[torch.tensor([17])])[0]
    assert np.isnan(target[[1, 2, 3]]).all()
    assert target[0] == pytest.approx(29, abs=1e-4)
    assert data.report["gaps"] == {"gaps": 1, "stamps": 3, "longest": 3}
    assert "3 stamps are lacking in 1 gaps, the longest of 3" in data.report["note"]
    assert data.report["columns"]["a"]["missing"]["train"] == pytest.approx(5 / 211, abs=1e-4)


def test_windows_that_look_into_long_holes_are_left_out(make):
    frame = hourly().filter(~pl.int_range(300).is_between(50, 55))
    spans = {"val_from": "2024-01-09 18:00", "test_from": "2024-01-11"}  # after row 209
    data = make(frame, max_gap=6, **spans)
    assert data.report["train"]["windows_left_out"] == 3  # no target is known: those from 50, 51 and 52
    data = make(frame, max_gap=5, **spans)
    starts = data.splits["train"].starts.tolist()
    assert sorted({*range(195)} - {*starts}) == [38, 39, 40, *range(44, 56)]  # row 55 is bridged over 6 steps
    assert "15 of 195 windows of train are left out" in data.report["note"]
    late = hourly(b=pl.Series([None] * 40 + [1.0, 2.0] * 130))
    assert make(late).splits["train"].starts[0] == 0  # a can be seen and forecast
    for role in ("past", "known"):
        data = make(late, targets=["a"], **{role: ["b"]})
        assert data.splits["train"].starts[0] == 40  # nothing to fill with before
        assert "b is silent for over 24 steps in 40 rows" in data.report["note"]


def test_a_silent_target_costs_the_others_no_window(make):
    frame = hourly(b=pl.Series([float(i) if i < 100 else None for i in range(300)]))
    data = make(frame, types={"b": "number"})
    assert data.num_samples == make(hourly()).num_samples
    assert "b is silent for over 24 steps in 176 rows" in data.report["note"]
    batch = data.splits["test"][torch.tensor([7])]
    assert batch["targets"][..., 0].isfinite().all()
    assert batch["targets"][..., 1].isnan().all()
    with pytest.raises(DataError, match=r"test has no window of .*; b is silent for over 24 steps in 176 rows -> "):
        make(frame, targets=["a"], past=["b"])


def test_the_seasonal_forecast_is_the_last_of_its_place(make):
    batch = make(hourly(), season=3).splits["test"][torch.tensor([0, 5])]
    data = make(hourly(), season=3)
    assert np.allclose(told(data, batch, "seasonal")[1] - told(data, batch)[1], [-3, -3, -3, -6], atol=1e-4)
    data = make(hourly(), season=20)  # longer than a window
    batch = data.splits["test"][torch.tensor([0])]
    assert np.allclose(told(data, batch, "seasonal"), told(data, batch) - 20, atol=1e-4)
    assert "seasonal" not in data.splits["train"][torch.tensor([0])]
    weekly = make(hourly().with_columns(date=stamps("2024-01-01", 300, "7d")))
    batch = weekly.splits["test"][torch.tensor([0])]
    assert np.allclose(told(weekly, batch, "seasonal"), told(weekly, batch)[:, :1] - 1, atol=1e-4)
    assert "data.season: steps of 7d have none of their own" in weekly.report["note"]
    short = Windows(
        {
            "values": torch.arange(30.0)[:, None],
            "targets": torch.arange(30.0)[:, None],
            "series": torch.tensor([0] * 15 + [1] * 15),
        },
        torch.tensor([0, 15]),
        5,
        2,
        season=8,
    )
    assert short[torch.arange(2)]["seasonal"].flatten().tolist() == [
        4,
        4,
        19,
        19,
    ]  # where a series begins: the last value


def test_windows_of_training_are_gathered_on_another_device(make):
    windows = make(hourly(), calendar=["hour"], stride=3).splits["train"]
    index = torch.tensor([0, 7])
    moved, expected = windows.moved(torch.clone), windows[index]
    assert len(moved) == len(windows)
    assert {name: torch.equal(t, expected[name]) for name, t in moved[index].items()} == dict.fromkeys(expected, True)
    there = windows.moved(lambda t: t.to("meta"))[index.to("meta")]
    assert {name: (t.device.type, t.shape) for name, t in there.items()} == {
        name: ("meta", t.shape) for name, t in expected.items()
    }


def test_columns_are_in_order_and_the_future_has_only_what_is_known(make):
    more = {"k": pl.Series(np.arange(300.0) % 5), "p": pl.Series(np.arange(300.0) % 9), "id": pl.Series(["x"] * 300)}
    data = make(hourly(**more), known=["k"], past=["p"], calendar=["hour", "weekday", "day", "month"])
    assert data.facts | {"in_channels": 27, "num_known": 25, "out_channels": 1} == data.facts
    batch = data.splits["train"][torch.tensor([7])]
    x = batch["x"][0]
    assert x.shape == (16, 27)
    rows = np.arange(7, 23)
    assert (x[12:, :2] == 0).all()
    assert np.allclose(told(data, {"x": x[None, :12]}, "x", 1), rows[:12] % 9, atol=1e-4)
    assert np.allclose(told(data, {"x": x[None]}, "x", 2), rows % 5, atol=1e-4)
    assert np.allclose(x[:, 3], np.sin(2 * np.pi * rows / 24), atol=1e-5)
    assert np.allclose(x[:, 4], np.cos(2 * np.pi * rows / 24), atol=1e-5)
    assert np.allclose(x[:, 7], np.sin(2 * np.pi * 3 * rows / 24), atol=1e-5)
    assert np.allclose(x[:, 21:], [0, 1] * 3)  # January
    assert "1 columns are not used: id (category)" in data.report["note"]


def test_series_of_a_group_keep_apart(make):
    b = hourly(250).with_columns(pl.col("a") + 1000, date=stamps("2024-01-05", 250))
    frame = pl.concat([hourly(200).with_columns(s=pl.lit(1)), b.with_columns(s=pl.lit(2))]).sample(
        fraction=1, shuffle=True, seed=1
    )
    data = make(frame, group="s", val_from="2024-01-08", test_from="2024-01-11")
    assert data.report["series"] == ["1", "2"]
    for split in data.splits:
        batch = data.splits[split][torch.arange(len(data.splits[split]))]
        x = told(data, batch, "x")
        assert np.allclose(np.diff(x, axis=1), 1, atol=1e-3)
        assert np.allclose(told(data, batch)[:, 0] - x[:, -1], 1, atol=1e-3)
    # 168 rows of 1 and 72 of 2 come before val_from
    assert data.report["train"] == {
        "steps": 240,
        "windows": 240 - 30,
        "windows_left_out": 0,
        "forecasts_left_out": 0,
        "series": 2,
    }
    assert data.report["val"]["series"] == 2
    assert data.report["test"]["series"] == 1
    found = predictions(data)
    assert set(found["series"]) == {"2"}


def test_forecasts_follow_each_other_into_the_future(make):
    data = make(hourly())
    found = predictions(data)
    assert found["time"][-1] == "2024-01-13T15:00:00"  # 4 steps after row 299
    assert len(set(found["time"])) == len(found["time"]) == 64
    assert np.isnan(found["target"][-4:]).all()
    assert np.allclose(found["target"][:-4], np.arange(240, 300), atol=1e-3)
    val = predictions(data, "val")  # it does not reach into the test
    assert val["time"][-1] == "2024-01-10T23:00:00"
    assert np.allclose(val["target"], np.arange(212, 240), atol=1e-3)


def test_known_columns_reach_into_the_future_or_it_is_not_forecast(make, capsys):
    known = pl.Series(np.arange(304.0) % 5)
    frame = hourly(304, k=known).with_columns(pl.when(pl.int_range(304) < 300).then("a").alias("a"))
    data = make(frame, known=["k"])
    found = predictions(data)
    assert np.isnan(found["target"][-4:]).all()
    assert not np.isnan(found["target"][:-4]).any()
    batch = data.tiles["test"][torch.tensor([len(data.tiles["test"]) - 1])]
    assert np.allclose(told(data, batch, "x", 1)[0, 12:], np.arange(300, 304) % 5, atol=1e-4)
    assert not np.isnan(predictions(make(frame.head(302), known=["k"]))["target"]).any()  # two are not enough
    assert "data.csv: 1 more forecasts are not made" in capsys.readouterr().out
    alone = frame.slice(200, 12)
    with pytest.raises(
        DataError, match=r"no forecast can be made in test: .* values of data.known that are not there -> "
    ):
        make(alone, "predict", data.state_dict(), "other.csv", known=["k"]).predict_dataloader()


def test_other_data_is_in_terms_of_the_checkpoint(make):
    trained = make(hourly(b=pl.Series(np.arange(300.0) * 2)))
    state = trained.state_dict()
    other = hourly(100, x=pl.Series(["?"] * 100), b=pl.Series(np.arange(100.0))).select("x", "b", "date", "a")
    data = make(other, "test", state, "other.csv")
    assert data.statistics == state["statistics"]
    assert data.num_samples == {"train": 85, "val": 85, "test": 85}  # all of it
    batch = data.splits["test"][torch.tensor([3, -1])]
    assert np.allclose(told(data, batch)[0], np.arange(15, 19), atol=1e-4)
    assert batch["targets"][1].isnan().all()
    assert "1 columns are not used: x" in data.report["note"]
    with pytest.raises(DataError, match=r"other\.csv: there is no column b"):
        make(other.drop("b"), "test", state, "other.csv")
    with pytest.raises(DataError, match=r"freq is 2h, the model's 1h -> give data.freq"):
        make(other.gather_every(2), "test", state, "other.csv")
    with pytest.raises(DataError, match=r"freq is 2h, the model's 1h"):
        make(other, "test", state, "other.csv", freq="2h")


def test_a_file_of_one_window_gives_its_future_alone(make):
    state = make(hourly()).state_dict()
    found = predictions(make(hourly(12), "predict", state, "other.csv"))
    assert found["time"] == [f"2024-01-01T{hour}:00:00" for hour in (12, 13, 14, 15)]
    with pytest.raises(
        DataError, match=r"other\.csv: test has no window of 12 steps that 4 with known targets follow -> "
    ):
        make(hourly(12), "test", state, "other.csv")
    with pytest.raises(DataError, match=r"too short: 11 steps, a window takes 12 -> lower data.window"):
        make(hourly(11), "predict", state, "other.csv")


def test_daylight_saving_loses_and_doubles_no_hour(make):
    """Berlin's clocks skip 2:00 on 2024-03-31, and tell it twice on 2024-10-27."""
    utc = stamps("2024-03-25", 6000)
    local = utc.dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    frame = pl.DataFrame({"date": local.dt.replace_time_zone(None), "a": np.arange(6000.0)})
    for rows in (frame, frame.reverse()):
        data = make(rows, time_zone="Europe/Berlin", calendar=["hour"])
        assert data.report["gaps"]["gaps"] == 0
        assert data.report["test"]["steps"] == 1200
        assert np.allclose(np.diff(told(data, data.splits["train"][torch.arange(4000)], "x")[:, :12]), 1, atol=1e-2)
    hours = data.splits["train"][torch.tensor([0])]["x"][0, :, 1]
    assert float(hours[0]) == pytest.approx(np.sin(2 * np.pi / 24), abs=1e-5)  # at 0:00 UTC it is 1:00
    assert predictions(data)["time"][-1].endswith("+01:00")
    zoned = frame.with_columns(date=local.dt.to_string("%Y-%m-%dT%H:%M:%S%z"))
    assert make(zoned).report["gaps"]["gaps"] == 0
    assert predictions(make(zoned, time_zone="Europe/Berlin"))["time"] == predictions(data)["time"]
    assert predictions(make(zoned))["time"][-1].endswith("+00:00")
    with pytest.raises(
        DataError, match=r"row 5187: a stamp twice: 2024-10-27 02:00:00, also in row 5186 -> .*data.time_zone"
    ):
        make(frame)
    skipped = frame.with_columns(
        pl.when(pl.int_range(6000) == 145).then(datetime(2024, 3, 31, 2)).otherwise("date").alias("date")
    )
    with pytest.raises(DataError, match=r"row 147: no stamp: .* tells an hour that the clocks of Europe/Berlin skip"):
        make(skipped, time_zone="Europe/Berlin")
    days = hourly().with_columns(date=stamps("2024-01-01", 300, "1d"))
    assert make(days, time_zone="Europe/Berlin").report["freq"] == "1d"  # each day is one step, also one of 23 hours


@pytest.mark.parametrize(
    ("start", "every", "freq", "season", "end"),
    [
        ("2000-01-01", "1mo", "1mo", 12, "2025-04-01"),
        ("2000-02-29", "1mo", "1mo", 12, "2025-05-31"),
        ("2000-01-15", "3mo", "3mo", 4, "2075-10-15"),
        ("1700-01-01", "12mo", "12mo", None, "2003-01-01"),
        ("2000-01-01", "7d", "7d", None, "2005-10-22"),
        ("2000-01-01", "15m", "15m", 96, "2000-01-04"),
    ],
)
def test_steps_are_found(make, start, every, freq, season, end):
    dates = stamps(start, 300, every)
    dates = dates.dt.month_end() if start == "2000-02-29" else dates
    frame = hourly().with_columns(date=dates)
    data = make(frame.filter(~pl.int_range(300).is_in([70, 90])))
    assert (data.report["freq"], data.report["season"]) == (freq, season)
    assert data.report["gaps"]["stamps"] == 2
    assert predictions(data)["time"][-1][:10] == end


def test_rows_are_brought_to_a_step_by_means(make):
    frame = hourly(1200).with_columns(date=stamps("2024-01-01", 1200, "15m"))
    data = make(frame, freq="1h")
    assert data.report["freq"] == "1h"
    assert np.allclose(told(data, data.splits["train"][torch.tensor([0])], "x"), np.arange(12) * 4 + 1.5, atol=1e-3)
    months = hourly(4000).with_columns(date=stamps("2010-01-01", 4000, "1d"))
    assert make(months, freq="1mo").report["train"]["steps"] == 92


def test_dirt_is_reported(make):
    frame = hourly(300, c=pl.Series([5.0] * 300), d=pl.Series(np.arange(300.0) % 7))
    frame = frame.with_columns(d=pl.when(pl.int_range(300) == 17).then(9999.0).otherwise("d"))
    rows = frame.write_csv(datetime_format="%Y-%m-%d %H:%M:%S").splitlines()
    rows = [*rows[:10], rows[9], *rows[10:]]
    data = make("\n".join(rows) + "\n")
    assert data.report["removed_counts"] == {"duplicate": 1}
    assert data.report["removed"][0]["file"] == "data.csv, row 11"
    assert data.statistics["targets"]["names"] == ["a", "d"]
    for part in (
        "column c is 5.0 in all of train: it is not forecast",
        "values beyond 10 interquartile ranges stay as they are: 1 of d",
    ):
        assert part in data.report["note"]
    assert data.report["outliers"] == {"d": 1}
    assert data.report["columns"]["date"]["from_to"]["val"] == ["2024-01-09 18:00:00", "2024-01-10 23:00:00"]
    assert data.report["shift"]["test"]["a"] > 2
    assert data.pictures()["columns"] is not None


def test_unlike_rows_of_one_stamp_are_skipped_where_that_is_wanted(make):
    rows = hourly().write_csv(datetime_format="%Y-%m-%d %H:%M:%S").splitlines()
    rows.insert(30, rows[29].partition(",")[0] + ",77")
    data = make("\n".join(rows), invalid="skip")
    assert data.report["removed"] == [
        {
            "split": "",
            "file": "data.csv, row 31",
            "reason": "a stamp twice",
            "detail": "2024-01-02 04:00:00, also in row 30",
        }
    ]
    assert data.num_samples["train"] == 195
    short = pl.concat([hourly(200).with_columns(s=pl.lit("x")), hourly(9).with_columns(s=pl.lit("y"))])
    data = make(short, group="s", invalid="skip")
    assert data.report["series"] == ["x"]
    assert data.report["removed"][0]["file"] == "data.csv, series y"


def text(*rows: str, head: str = "date,a") -> str:
    return "\n".join([head, *rows]) + "\n"


def lines(start: datetime, every: timedelta, count: int) -> list[str]:
    """Rows of a CSV; made without polars, whose threads are not for the process that collects tests."""
    return [f"{start + i * every},{i}" for i in range(count)]


ROWS = lines(datetime(2024, 1, 1), timedelta(hours=1), 300)
HALF_HOURS = lines(datetime(2024, 2, 1), timedelta(minutes=30), 60)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (text(*ROWS[:1]), {}, "of which no two are of one series -> give more"),
        (
            text(*ROWS[:10]),
            {"val_from": "2024-01-01 05:00", "test_from": "2024-01-01 07:00"},
            r"data\.csv: too short: 10 steps, a window takes 16",
        ),
        (text(*ROWS[:30]), {}, r"val has no window of 12 steps that 4 with known targets follow -> .* lower"),
        (text(*ROWS, *HALF_HOURS), {}, r"most often 1h apart, after 2024-02-01 00:00:00 30m -> .*--data.freq 1h"),
        (
            text(*ROWS[:100], *ROWS[100::2]),
            {},
            r"most often 1h apart, after 2024-01-05 04:00:00 2h -> .*--data.freq 2h",
        ),
        (
            text(*(f"{2000 + i // 12}-{i % 12 + 1:02}-{1 + i % 5 % 2:02},{i}" for i in range(90))),
            {},
            r"most often 31d apart, .* -> .*--data.freq 1mo$",
        ),
        (text(*ROWS, "2124-01-01 00:00:00,1"), {}, r"301 rows from 2024-01-01 00:00:00 to 2124-01-01 00:00:00 are few"),
        (
            text(*ROWS, *ROWS[:3], *(row.replace(",", ",9") for row in ROWS)),
            {},
            r"row 305: a stamp twice: 2024-01-01 00:00:00, also in row 302; 299 more .* apart with data\.group",
        ),
        (text(*ROWS[:50], ",1", *ROWS[50:]), {}, "row 52: no stamp: column date is empty"),
        (
            text(*(row + ",x" for row in ROWS), head="date,a,b"),
            {"targets": ["b"]},
            "data.targets: column b is category, not number",
        ),
        (
            text(*(row + ",5" for row in ROWS), head="date,a,b"),
            {"targets": ["b"]},
            "column b is 5.0 in all of train: nothing can be learned",
        ),
        (text(*(row + "," for row in ROWS), head="date,a,b"), {"targets": ["b"]}, "column b is empty, not number"),
        (
            text(*(row + "," + row[:19] for row in ROWS), head="date,a,b"),
            {},
            "data.time: date and b are dates -> name one",
        ),
        (
            text(*(row.replace("2024-01", "in", 1) for row in ROWS)),
            {},
            "data.time: no column is a date -> say which is",
        ),
        (text(*ROWS), {"time": "dat"}, "there is no column dat; did you mean date"),
        (text(*ROWS), {"targets": ["a"], "known": ["a"]}, "data.targets: column a is named twice"),
        (text(*ROWS), {"past": ["a"]}, "no column of numbers is left to forecast"),
        (
            text(*ROWS),
            {"val_from": "2024-01-05", "test_from": "2025-01-01"},
            "do not part the stamps from 2024-01-01 00:00:00 to",
        ),
        (text(*ROWS), {"until": "2023-01-01"}, "no row is left"),
        (text(*ROWS[:100], *ROWS[160:]), {"max_gap": 0, "window": 190}, "raise data.max_gap"),
    ],
)
def test_bad_input(make, rows, options, message):
    with pytest.raises(DataError, match=message) as caught:
        make(rows, **options)
    assert "->" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "seasons"}, "data.file, data.dataset"),
        ({"window": 0}, "data.window: 0"),
        ({"stride": 0}, "data.stride: 0"),
        ({"freq": "1 hour"}, "data.freq: 1 hour is no step"),
        ({"time_zone": "Berlin"}, "data.time_zone: Berlin"),
        ({"val_from": "2024-01-01"}, "one of them is given"),
        ({"until": "yesterday"}, "data.until: yesterday is no date"),
        ({"val_frac": 0.5, "test_frac": 0.5}, "leave nothing"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SeriesDataModule(**{"file": "a.csv"} | options)


def test_augmentation_is_a_function_of_seed_epoch_and_window():
    x, targets = torch.zeros(400, 12, 3), torch.ones(400, 4, 2)
    index = torch.arange(400)
    one, same = Jitter(0.5)(x, targets, partial(normals, index, 0, 1, 0))
    again = Jitter(0.5)(x[:7], targets[:7], partial(normals, index[100:107], 0, 1, 0))[0]
    assert torch.equal(again, one[100:107])
    assert torch.equal(same, targets)
    assert float(one.std()) == pytest.approx(0.5, rel=0.02)
    assert one.isfinite().all()
    assert not torch.equal(one, Jitter(0.5)(x, targets, partial(normals, index, 0, 2, 0))[0])
    scaled, wanted = Scaling(0.1)(x + 1, targets, partial(normals, index, 0, 1, 0))
    assert torch.equal(scaled[:, :4, :2], wanted)
    assert float(scaled.std()) == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ConfigError, match=r"Jitter\.std: -1"):
        Jitter(-1)


def test_augmentation_is_for_training_and_leaves_what_is_known(make):
    data = make(hourly(k=pl.Series(np.arange(300.0) % 5)), known=["k"], augment=[Jitter(1.0), Scaling(0.5)])
    plain = data.on_after_batch_transfer(data.splits["train"][torch.arange(4)], 0)
    data.trainer = SimpleNamespace(
        training=True, current_epoch=3, precision_plugin=SimpleNamespace(convert_input=lambda x: x)
    )
    batch = data.on_after_batch_transfer(data.splits["train"][torch.arange(4)], 0)
    assert torch.equal(batch["x"][..., 1], plain["x"][..., 1])
    assert (batch["x"][:, 12:, 0] == 0).all()
    assert not torch.equal(batch["x"][:, :12, 0], plain["x"][:, :12, 0])
    assert not torch.equal(batch["targets"], plain["targets"])
    assert torch.equal(plain["x"], data.splits["train"][torch.arange(4)]["x"])  # the rows themselves stay


def test_windows_are_normalized_by_themselves_where_that_is_wanted(make):
    data = make(hourly(k=pl.Series(np.arange(300.0) % 5)), known=["k"], normalize="window")
    raw = data.splits["train"][torch.tensor([3])]
    batch = data.on_after_batch_transfer({**raw, "x": raw["x"].clone()}, 0)
    seen = batch["x"][:, :12, :1]
    assert torch.allclose(seen.mean(1), torch.zeros(1, 1), atol=1e-5)
    assert torch.allclose(seen.std(1, correction=0), torch.ones(1, 1), atol=1e-4)
    assert torch.allclose(seen * batch["std"] + batch["mean"], raw["x"][:, :12, :1], atol=1e-5)
    assert torch.equal(batch["targets"], raw["targets"])
    assert torch.equal(batch["x"][..., 1], raw["x"][..., 1])
    assert batch["mean"].shape == batch["std"].shape == (1, 1, 1)
    flat = {"x": torch.ones(1, 16, 2), "targets": torch.ones(1, 4, 1), "index": torch.zeros(1)}
    assert data.on_after_batch_transfer(flat, 0)["std"].item() == pytest.approx(1e-5)


def test_with_a_stride_windows_begin_elsewhere_in_each_epoch(make):
    data = make(hourly(), stride=10)
    assert data.num_samples == {"train": 19, "val": 27, "test": 57}
    starts = []
    for epoch in (0, 0, 1, 2, 3):
        order = TrainOrder(19, 6, 6, 0, lambda e=epoch: (e, 0), ordered=data.epoch_order)
        starts.append(torch.cat(list(order)))
        assert len({int(s) // 10 for s in starts[-1]}) == len(starts[-1]) == 18
        assert (data.splits["train"][starts[-1]]["targets"].isfinite()).all()
    assert torch.equal(starts[0], starts[1])
    assert len({int(s[0]) % 10 for s in starts}) > 2


def test_the_generated_series_has_trend_seasons_and_holes(tmp_path):
    data = SeriesDataModule(dataset="seasons", cache_dir=str(tmp_path))
    data.setup("fit")
    assert data.report["gaps"]["longest"] == 30
    assert data.statistics["targets"]["names"] == ["north", "south", "east"]
    assert all(0.002 < data.report["columns"][name]["missing"]["train"] < 0.03 for name in ("north", "south", "east"))
    batch = next(iter(data.eval_loader("test")))
    known = batch["targets"].isfinite()
    errors = {name: ((batch[name] - batch["targets"])[known] ** 2).mean() for name in ("seasonal",)}
    assert errors["seasonal"] < ((batch["x"][:, -1:] - batch["targets"])[known] ** 2).mean() / 2
    assert data.picture({k: v[:3] for k, v in batch.items()}) is not None


def test_a_series_of_ones_own(make, tmp_path):
    class Own(SeriesDataModule):
        def load(self):
            return hourly()

    data = Own(types={"a": "number"}, window=12, horizon=4, batch_size=8, cache_dir=str(tmp_path))
    data.setup("fit")
    assert data.num_samples["train"] == 195
    assert step_of("90m") == (0, 5_400_000_000)
    assert season_of("90m") == 16
    assert season_of("1q") == 4


def test_prepared_data_are_of_the_options_of_a_subclass(tmp_path):
    class Leveled(SeriesDataModule):
        def __init__(self, level: float, **kwargs):
            super().__init__(**kwargs)
            self.level = level

        def load(self):
            return hourly().with_columns(pl.col("a") + self.level)

    def made(level: float, **options) -> SeriesDataModule:
        data = Leveled(level, window=12, horizon=4, cache_dir=str(tmp_path), types={"a": "number"}, **options)
        data.setup("fit")
        return data

    assert [made(level).statistics["targets"]["mean"] for level in (0.0, 7.0)] == [[104.5], [111.5]]
    assert made(7.0, stride=3, augment=[Jitter()], normalize="window").folder == made(7.0).folder


def test_names_of_series_stay_as_they_are(make):
    parts = [hourly().with_columns(s=pl.lit(name)) for name in ("s1", "s1.0")]
    assert make(pl.concat(parts), group="s").report["series"] == ["s1", "s1.0"]


@pytest.mark.parametrize(
    ("start", "every", "freq"),
    [
        ("2024-01-07", "7d", "1w"),  # Sundays
        ("2024-01-07 06:00", "1d", "1d"),
        ("2024-01-01 00:30", "1h", "1h"),
        ("2000-01-15", "1mo", "1mo"),
        ("2000-01-30", "1mo", None),  # in February the last day
        ("2000-01-31", "1mo", "1mo"),
    ],
)
def test_a_step_that_the_stamps_have_moves_none(make, start, every, freq):
    dates = stamps(start, 301, every)
    found = predictions(make(hourly().with_columns(date=dates[:300]), freq=freq))
    assert [at.replace("T", " ") for at in found["time"]][:61] == dates[240:].dt.to_string(
        "%Y-%m-%d %H:%M:%S" if "T" in found["time"][0] else "%Y-%m-%d"
    ).to_list()


@pytest.mark.parametrize(("start", "others"), [("2001-01-31", "2003-03-01"), ("2001-03-01", "2003-01-31")])
@pytest.mark.parametrize("freq", [None, "1mo"])
def test_other_data_keep_their_stamps(make, start, others, freq):
    state = make(hourly().with_columns(date=stamps(start, 300, "1mo")), freq=freq).state_dict()
    dates = stamps(others, 17, "1mo")
    frame = hourly(16).with_columns(date=dates[:16])
    found = predictions(make(frame, "predict", state, "other.csv", freq=freq))
    assert found["time"][:5] == dates[12:].dt.to_string("%Y-%m-%d").to_list()


def test_other_data_go_by_the_models_clock(make, tmp_path):
    def files(count: int) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, str]]:
        frame, file = hourly(count), tmp_path / f"{count}.parquet"
        berlin = frame.with_columns(pl.col("date").dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin"))
        berlin.write_parquet(file)
        return frame, berlin.with_columns(pl.col("date").dt.to_string("%Y-%m-%dT%H:%M:%S%z")), {"file": str(file)}

    frame, text, own = files(300)
    naive, offsets, zoned = make(frame).state_dict(), make(text).state_dict(), make(frame, **own).state_dict()
    frame, text, own = files(100)
    with pytest.raises(
        DataError, match=r"100.parquet: time_zone is Europe/Berlin, the model's None -> give data.time_zone"
    ):
        make(frame, "predict", naive, **own)
    with pytest.raises(DataError, match=r"is Europe/Berlin, the model's UTC -> give data.time_zone"):
        make(frame, "predict", offsets, **own)
    with pytest.raises(DataError, match=r"other.csv, row 2: no date: .* -> mend it, or give data.date_format"):
        make(frame, "predict", zoned, "other.csv")
    with pytest.raises(DataError, match=r"other.csv: time_zone is None, the model's Europe/Berlin"):
        make(frame, "predict", zoned, "other.csv", date_format="%Y-%m-%d %H:%M:%S")
    with pytest.raises(DataError, match=r"is UTC, the model's None"):
        make(text, "predict", naive, "other.csv", date_format="%Y-%m-%dT%H:%M:%S%z")
    for state in (naive, offsets, zoned):
        data = make(frame, "predict", state, time_zone="Europe/Berlin", **own)
        assert predictions(data)["time"][-1] == "2024-01-05T08:00:00+01:00"
    assert predictions(make(frame, "predict", zoned, **own))["time"] == predictions(data)["time"]


def test_days_of_stamps_with_offsets_need_a_zone(make):
    local = stamps("2024-03-01", 300, "1d").dt.replace_time_zone("Europe/Berlin")
    days = hourly().with_columns(date=local.dt.to_string("%Y-%m-%dT%H:%M:%S%z"))
    utc = hourly().with_columns(date=stamps("2024-03-01", 300, "1d").dt.to_string("%Y-%m-%dT%H:%M:%SZ"))
    hours = hourly().with_columns(pl.col("date").dt.to_string("%Y-%m-%dT%H:%M:%SZ"))
    for frame, options in ((days, {}), (days, {"freq": "1d"}), (hours, {"freq": "1d"})):
        with pytest.raises(
            DataError, match=r"data.csv: steps of days, .* where does a day begin. -> give data.time_zone"
        ):
            make(frame, **options)
    for frame, options in ((days, {"time_zone": "Europe/Berlin"}), (utc, {})):
        data = make(frame, **options)
        assert data.report["gaps"]["gaps"] == 0
        assert predictions(data)["time"][-1] == "2024-12-29"


def test_targets_beside_predictions_are_exact(make):
    big = 123_457_650 + np.arange(300.0) % 3
    found = predictions(make(hourly().with_columns(a=pl.Series(big)), calendar=["hour"]))["target"]
    assert found.dtype == np.float64
    assert found[:-4].tolist() == big[240:].tolist()
    assert np.isnan(found[-4:]).all()
    two = predictions(make(hourly(b=pl.Series(big))))
    assert (two["target_a"][:-4].tolist(), two["target_b"][:-4].tolist()) == (list(range(240, 300)), big[240:].tolist())


@pytest.mark.parametrize(("option", "value", "was"), [("window", 9, 12), ("horizon", 6, 4), ("in_channels", 7, 1)])
def test_what_the_network_was_built_for_cannot_change(make, option, value, was):
    state = make(hourly()).state_dict()
    options = {"calendar": ["hour"]} if option == "in_channels" else {option: value}
    for name in ("data.csv", "other.csv"):
        with pytest.raises(
            ConfigError, match=rf"data.{option}: the model was trained with {was}, this is {value} -> leave"
        ):
            make(hourly(200 if name == "other.csv" else 300), "predict", state, name, **options)


def test_days_and_months_go_by_the_stamps_as_told(make):
    local = stamps("2024-08-01", 3600).dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    frame = hourly(3600).with_columns(date=local.dt.replace_time_zone(None))
    days = make(frame, freq="1d", time_zone="Europe/Berlin")  # one has 25 hours
    assert days.report["gaps"]["gaps"] == 0
    told_days = np.array(predictions(days)["time"], dtype="datetime64[D]")
    assert (np.diff(told_days).astype(int) == 1).all()
    assert len(predictions(days)["time"][0]) == 10
    ends = hourly().with_columns(date=stamps("2000-01-31", 300, "1mo").dt.month_end())
    spans = make(ends, val_from="2015-01-31", test_from="2020-02-01").report["columns"]["date"]["from_to"]
    assert (spans["val"][0][:10], spans["test"][0][:10]) == ("2015-01-31", "2020-02-29")
