import csv
import json
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

from src import load_run, predict
from src.data.module import Arrays, DataModule
from src.models.regression import Regression

# kind: tables
DIABETES = ["--config", "configs/experiment/diabetes_mlp.yaml", "--pictures.enabled", "false"]
DIABETES += ["--trainer.max_epochs", 3, "--trainer.log_every_n_steps", 5]
# end


def read(path) -> dict[str, np.ndarray]:
    with open(path) as f:
        rows = list(csv.DictReader(f))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


# kind: tables
def test_metrics_are_those_of_the_predictions_in_the_targets_units(run, trained_once, tmp_path):
    folder = trained_once(DIABETES)
    run(["--run_dir", folder, "--output", tmp_path / "p.csv"], command=predict.main)
    rows, summary = read(tmp_path / "p.csv"), json.loads((folder / "summary.json").read_text())
    truth = load_diabetes().target
    assert np.array_equal(rows["target"], truth[rows["row"].astype(int) - 1])
    errors = rows["prediction"] - rows["target"]
    assert summary["test/rmse"] == pytest.approx(math.sqrt((errors**2).mean()), rel=1e-5)
    assert summary["test/mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert summary["test/r2"] == pytest.approx(1 - (errors**2).mean() / rows["target"].var(), rel=1e-4)
    std = load_run(folder).data.statistics["targets"]["std"][0]
    assert summary["test/loss"] == pytest.approx((errors**2).mean() / std**2, rel=1e-4)


def test_quantiles_are_in_order_and_cover(run, trained_once, tmp_path):
    flags = ["--model.loss", "quantile", "--model.quantiles", "[0.1, 0.5, 0.9]", "--trainer.max_epochs", 10]
    folder = trained_once([*DIABETES, *flags])
    run(["--run_dir", folder, "--output", tmp_path / "p.csv"], command=predict.main)
    rows, summary = read(tmp_path / "p.csv"), json.loads((folder / "summary.json").read_text())
    low, middle, high = (rows[f"prediction_{q}"] for q in ("0.1", "0.5", "0.9"))
    assert np.array_equal(middle, rows["prediction"])
    assert (low <= middle).all()
    assert (middle <= high).all()
    inside = ((rows["target"] >= low) & (rows["target"] <= high)).mean()
    assert summary["test/coverage"] == pytest.approx(inside, abs=1e-6)
    assert 0.6 < inside < 0.95


@pytest.mark.parametrize("loss", ["mae", "huber"])
def test_other_losses_learn(trained_once, loss):
    summary = json.loads((trained_once([*DIABETES, "--model.loss", loss]) / "summary.json").read_text())
    assert summary["test/r2"] > 0.2


def test_classes_are_refused(run, tmp_path):
    output = run([*DIABETES, "--data.dataset", "wine", "--run_dir", tmp_path / "run"], code=3)
    line = output.splitlines()[-1]
    assert "targets are torch.int64" in line
    assert line.endswith("-> data.types: {target: number} for a number, or src.models.classification.Classification")


def test_numbers_are_no_classes(run, tmp_path):
    flags = ["--config", "configs/experiment/wine_mlp.yaml", "--data.dataset", "diabetes"]
    line = run([*flags, "--run_dir", tmp_path / "run"], code=3).splitlines()[-1]
    assert "labels are torch.float32" in line
    assert line.endswith("-> data.types: {target: category} for classes, or src.models.regression.Regression")


# end


class Line(DataModule):
    """y = 3 x + 100, of which half of the last batch is padding."""

    def setup(self, stage: str) -> None:
        x = torch.linspace(-1, 1, 24)[:, None]
        self.splits = dict.fromkeys(("train", "val", "test"), Arrays(x, x[:, 0]))
        self.facts, self.statistics = {"in_features": 1}, {"targets": {"names": ["y"], "mean": [100.0], "std": [3.0]}}


def test_padding_counts_for_nothing(monkeypatch):
    model, data = Regression(network=torch.nn.Linear, optimizer=torch.optim.SGD), Line(batch_size=16)
    data.setup("test")
    model._trainer = type("T", (), {"datamodule": data})()
    model.network = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.network.weight.fill_(0.5)
        model.network.bias.fill_(0.0)
    logged = {}
    monkeypatch.setattr(model, "log_dict", logged.update)
    for batch in data.test_dataloader():
        model.validation_step(batch, 0)
    model.log_scores("test")
    errors = 0.5 * torch.linspace(-1, 1, 24)
    assert logged["test/rmse"] == pytest.approx(3 * errors.square().mean().sqrt().item(), rel=1e-5)
    assert logged["test/mae"] == pytest.approx(3 * errors.abs().mean().item(), rel=1e-5)
    assert logged["test/r2"] == pytest.approx(0.75, rel=1e-5)
    found = model.columns({"outputs": torch.tensor([[1.0]]), "targets": torch.tensor([torch.nan])}, data)
    assert found["prediction"].tolist() == [103.0]
    assert found["target"] != found["target"]  # NaN, an empty cell in the file
