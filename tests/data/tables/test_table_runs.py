"""From a CSV to predictions, as a user does it."""

import json
import math
import pickletools
import zipfile

import numpy as np
import polars as pl
import pytest
import torch
from test_tables import houses

from src import evaluate, load_run, predict

NETWORK = "{class_path: src.networks.table_mlp.TableMLP, init_args: {dim: 16, num_frequencies: 4}}"
FLAGS = ["--config", "configs/experiment/diabetes_mlp.yaml", "--data.dataset", "null", "--data.target", "price"]
FLAGS += ["--data.row_key", "listing", "--model.network", NETWORK, "--trainer.max_epochs", 4]
FLAGS += ["--pictures.enabled", "false"]


@pytest.fixture(scope="module")
def flats(tmp_path_factory):
    path = tmp_path_factory.mktemp("flats") / "flats.csv"
    houses().write_csv(path)
    return path


@pytest.fixture
def folder(trained_once, flats):
    return trained_once([*FLAGS, "--data.file", flats])


def test_predictions_read_by_another_program_are_what_was_measured(run, folder, flats, tmp_path):
    run(["--run_dir", folder], command=evaluate.main)
    measured = json.loads((folder / "evaluate_test.json").read_text())
    for name, read in (("p.csv", pl.read_csv), ("p.parquet", pl.read_parquet)):
        run(["--run_dir", folder, "--output", tmp_path / name], command=predict.main)
        found = read(tmp_path / name)
        assert found.columns == ["listing", "target", "prediction"]
        joined = found.join(pl.read_csv(flats), on="listing")
        assert joined.height == found.height == measured["samples"] == 80
        assert (joined["target"] == joined["price"]).all()
        errors = joined["prediction"] - joined["price"]
        assert math.sqrt((errors**2).mean()) == pytest.approx(measured["test/rmse"], rel=1e-5)


def test_rows_of_another_file_get_the_same_predictions(run, folder, flats, tmp_path):
    run(["--run_dir", folder, "--output", tmp_path / "p.csv"], command=predict.main)
    known = pl.read_csv(tmp_path / "p.csv")
    frame = pl.read_csv(flats).drop("price").with_columns(more=pl.lit(1))
    frame.select(reversed(frame.columns)).sample(fraction=1, shuffle=True, seed=0).write_parquet(
        tmp_path / "new.parquet"
    )
    output = run(["--run_dir", folder, "--data.file", tmp_path / "new.parquet"], command=predict.main)
    assert "columns that train has not: more" in output
    found = pl.read_csv(folder / "predictions_new.csv")
    assert found.height == 400
    assert found["target"].null_count() == 400
    both = known.join(found, on="listing")
    assert np.allclose(both["prediction"], both["prediction_right"], rtol=1e-6)
    output = run(["--run_dir", folder, "--data.file", tmp_path / "new.parquet"], command=evaluate.main, code=3)
    assert output.splitlines()[-1].endswith("rows have no price -> fill it in, or take python -m src.predict")


def test_a_row_that_cannot_be_read_is_named_or_left_out(run, folder, flats, tmp_path):
    lines = flats.read_text().splitlines()[:40]
    lines[4] = lines[4].replace(lines[4].split(",")[1], "large")
    (tmp_path / "bad.csv").write_text("\n".join(lines))
    flags = ["--run_dir", folder, "--data.file", tmp_path / "bad.csv"]
    line = run(flags, command=predict.main, code=3).splitlines()[-1]
    assert "bad.csv, row 5: no number: column size is 'large'" in line
    run([*flags, "--data.invalid", "skip"], command=predict.main)
    assert pl.read_csv(folder / "predictions_bad.csv").height == 38


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


def test_a_model_in_python(folder, flats):
    model = load_run(folder)
    frame = pl.read_csv(flats, try_parse_dates=True).with_columns(
        pl.col("rooms").cast(pl.Float64), pl.col("sold").cast(pl.Datetime("us"))
    )
    with torch.no_grad():
        assert model(model.data.encode(frame)).shape == (400, 1)
