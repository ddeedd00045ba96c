"""From a CSV to predictions, as a user does it."""

import json
import math
import pickletools
import zipfile

import numpy as np
import pytest
import torch
from flats import columns, read, write
from pyarrow import parquet

from src import evaluate, load_run, predict

NETWORK = "{class_path: src.networks.table_mlp.TableMLP, init_args: {dim: 16, num_frequencies: 4}}"
FLAGS = ["--config", "configs/experiment/diabetes_mlp.yaml", "--data.dataset", "null", "--data.target", "price"]
FLAGS += ["--data.row_key", "listing", "--model.network", NETWORK, "--trainer.max_epochs", 4]
FLAGS += ["--pictures.enabled", "false"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("flats") / "flats.csv"
    write(path, columns())
    return path


@pytest.fixture
def folder(trained_once, file):
    return trained_once([*FLAGS, "--data.file", file])


def test_predictions_read_by_another_program_are_what_was_measured(run, folder, file, tmp_path):
    prices = {row["listing"]: float(row["price"]) for row in read(file)}
    run(["--run_dir", folder], command=evaluate.main)
    measured = json.loads((folder / "evaluate_test.json").read_text())
    for name in ("p.csv", "p.parquet"):
        run(["--run_dir", folder, "--output", tmp_path / name], command=predict.main)
        rows = read(tmp_path / name) if name == "p.csv" else parquet.read_table(tmp_path / name).to_pylist()
        assert list(rows[0]) == ["listing", "target", "prediction"]
        assert len({row["listing"] for row in rows}) == len(rows) == measured["samples"] == 80
        assert all(float(row["target"]) == prices[row["listing"]] for row in rows)
        errors = np.array([float(row["prediction"]) - prices[row["listing"]] for row in rows])
        assert math.sqrt((errors**2).mean()) == pytest.approx(measured["test/rmse"], rel=1e-5)


def test_rows_of_another_file_get_the_same_predictions(run, folder, file, tmp_path):
    run(["--run_dir", folder, "--output", tmp_path / "p.csv"], command=predict.main)
    known = {row["listing"]: float(row["prediction"]) for row in read(tmp_path / "p.csv")}
    table = {name: values[::-1] for name, values in reversed(columns().items()) if name != "price"}
    write(tmp_path / "new.csv", table | {"more": [1] * len(table["size"])})
    output = run(["--run_dir", folder, "--data.file", tmp_path / "new.csv"], command=predict.main)
    assert "columns that train has not: more" in output
    found = {row["listing"]: row for row in read(folder / "predictions_new.csv")}
    assert len(found) == 400
    assert {row["target"] for row in found.values()} == {""}
    assert {name: float(found[name]["prediction"]) for name in known} == pytest.approx(known, rel=1e-6)
    output = run(["--run_dir", folder, "--data.file", tmp_path / "new.csv"], command=evaluate.main, code=3)
    assert output.splitlines()[-1].endswith("rows have no price -> fill it in, or take python -m src.predict")


def test_rows_of_training_among_those_measured_are_told(run, trained_once, tmp_path):
    write(tmp_path / "flats.csv", columns())
    folder = trained_once([*FLAGS, "--data.file", tmp_path / "flats.csv"])
    said = "Other data than the model was trained on: {} samples; their source is the same, but it or its splits have"
    output = run(["--run_dir", folder, "--data.test_frac", 0.3], command=evaluate.main)
    assert said.format(400) in " ".join(output.split())
    write(tmp_path / "flats.csv", columns(420))
    assert said.format(420) in " ".join(run(["--run_dir", folder], command=evaluate.main).split())
    write(tmp_path / "new.csv", columns(60, 7))
    output = run(["--run_dir", folder, "--data.file", tmp_path / "new.csv"], command=evaluate.main)
    assert "trained on: 60 samples." in " ".join(output.split())


def test_a_row_that_cannot_be_read_is_named_or_left_out(run, folder, tmp_path):
    table = columns(40)
    table["size"][3] = "large"
    write(tmp_path / "bad.csv", table)
    flags = ["--run_dir", folder, "--data.file", tmp_path / "bad.csv"]
    line = run(flags, command=predict.main, code=3).splitlines()[-1]
    assert "bad.csv, row 5: no number: column size is 'large'" in line
    run([*flags, "--data.invalid", "skip"], command=predict.main)
    assert len(read(folder / "predictions_bad.csv")) == 39


def test_a_checkpoint_has_plain_data_only(folder):
    saved = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["TableDataModule"]

    def kinds(data):
        inside = data.values() if isinstance(data, dict) else data if isinstance(data, (list, tuple)) else ()
        return {type(data)}.union(*map(kinds, inside))

    assert kinds(saved) <= {dict, list, str, int, float, bool, type(None)}
    with zipfile.ZipFile(folder / "checkpoints/best.ckpt") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        named = {str(arg).split()[0] for op, arg, _ in pickletools.genops(archive.read(name)) if op.name == "GLOBAL"}
    assert not [module for module in named if module.startswith(("src", "sklearn", "polars"))]


def use_in_python(args) -> None:
    import polars as pl

    folder, file = args
    model = load_run(folder)
    numbers = {"rooms": pl.Float64, "sold": pl.Datetime("us")}
    frame = pl.read_csv(file, try_parse_dates=True).with_columns(pl.col(n).cast(t) for n, t in numbers.items())
    with torch.no_grad():
        assert model(model.data.encode(frame)).shape == (400, 1)


def test_a_model_in_python(run, folder, file):
    run([folder, file], command=use_in_python)
