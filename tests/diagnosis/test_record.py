import csv
import json
from pathlib import Path

import pytest
from conftest import SMALL

from src.diagnosis.record import record
from src.run.errors import CheckpointError
from src.run.folder import RunFolder

HARD = [*SMALL, "--data.noise", "4", "--model.label_smoothing", "0"]
LARGE = [*HARD, "--model.network.widths", "[256,256]", "--model.network.dropout", "0"]
OVERFITS = [*LARGE, "--model.optimizer.weight_decay", "0", "--trainer.max_epochs", "60"]
NAN = [*SMALL, "--model.optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 1.0e+30}}"]


def checks(folder: Path) -> dict:
    return {one.check: one for one in record(RunFolder(folder))[0]}


def test_a_healthy_run_is_silent(trained_once):
    folder = trained_once([*SMALL, "--trainer.max_epochs", "30"])
    found, measured = record(RunFolder(folder))
    assert found == []
    assert measured["status"] == "finished"
    assert "overfits" not in measured["marks"]
    assert measured["ledger"]["forward"] > 0
    assert len(measured["curves"]["val/loss"][0]) == 30


def test_overfitting_is_found_where_it_begins(trained_once):
    found, measured = record(RunFolder(trained_once(OVERFITS)))
    assert found[0].check == "overfits"
    marks = measured["marks"]
    assert 0 < marks["best"] < marks["overfits"] < 600
    change = found[0].change
    assert change["trainer"]["max_epochs"] < 40
    assert change["model"]["init_args"]["network"]["init_args"]["dropout"] > 0
    assert change["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"] > 0


def test_a_short_run_is_told_to_go_on(trained_once):
    found = checks(trained_once([*SMALL, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "5"]))
    assert [*found] == ["too_short"]
    assert found["too_short"].change == {"trainer": {"max_epochs": 6}}


def test_numbers_that_are_not_finite(trained_once):
    found = checks(trained_once(NAN, code=5))
    assert [*found] == ["not_finite"]
    assert found["not_finite"].evidence["exit_code"] == 5
    assert "learning rate" in found["not_finite"].todo


def test_a_run_that_was_killed_says_how_to_go_on(copied):
    folder = copied(SMALL)
    (folder / "summary.json").unlink()
    found = checks(folder)
    assert [*found] == ["not_finished"]
    assert "python -m src.train" in found["not_finished"].todo


@pytest.mark.parametrize("damage", ["", '{"status": "fin', "[1]"])
def test_a_damaged_summary_is_a_finding(copied, damage):
    folder = copied(SMALL)
    (folder / "summary.json").write_text(damage)
    assert [*checks(folder)] == ["not_finished"]


def test_damaged_and_missing_files_are_one_line(copied, tmp_path):
    folder = copied(SMALL)
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("\n19,0,", "\n19,0,x"))
    with pytest.raises(CheckpointError, match=r"metrics\.csv: damaged"):
        checks(folder)
    (folder / "metrics.csv").write_bytes(text.encode()[:700])
    checks(folder)  # what is there is read
    (folder / "metrics.csv").unlink()
    assert checks(folder) == {}
    (folder / "config.yaml").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        checks(folder)
    with pytest.raises(CheckpointError, match="no run is here"):
        checks(tmp_path / "nothing")


def curves(folder: Path, **columns) -> None:
    """Other curves in place of the run's own: a value for each row of a column."""
    with open(folder / "metrics.csv", "w", newline="") as file:
        names = [name.replace("_", "/", 1) for name in columns]
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", *names])
        writer.writerows([i, i, *values] for i, values in enumerate(zip(*columns.values(), strict=True)))


def test_noise_in_validation_is_no_overfitting(copied):
    folder = copied(SMALL)
    train = [2 / (1 + i) for i in range(40)]
    noisy = [0.5 + 1.5 / (1 + i) + 0.15 * (-1) ** i for i in range(40)]
    curves(folder, train_loss=train, val_loss=noisy)
    assert checks(folder) == {}
    curves(folder, train_loss=train, val_loss=[1 + abs(i - 8) / 20 for i in range(40)])
    assert [*checks(folder)] == ["overfits"]


def test_a_rise_that_costs_no_accuracy_must_be_larger(copied):
    folder = copied(SMALL)
    train, val = [2 / (1 + i) for i in range(40)], [0.5 + 1.5 / (1 + i) + 0.012 * i for i in range(40)]
    curves(folder, train_loss=train, val_loss=val, val_acc=[min(0.1 + 0.1 * i, 0.9) for i in range(40)])
    assert checks(folder) == {}
    curves(folder, train_loss=train, val_loss=val, val_acc=[min(0.1 + 0.1 * i, 0.9) - 0.003 * i for i in range(40)])
    assert [*checks(folder)] == ["overfits"]


def test_time_by_part_is_that_of_the_ledger(copied):
    folder = copied(SMALL)
    summary = json.loads((folder / "summary.json").read_text())
    summary["ledger"] |= {"validation": 10 * sum(summary["ledger"].values())}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "validation_too_often" in checks(folder)
