"""The parts of a run's time, in processes of their own, as a whole command makes them."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from conftest import ROOT, SMALL

from src.run.ledger import Ledger, process_age, shares

STEPS = {"data_wait", "transform", "forward", "backward", "optimizer", "callbacks", "logging", "loop"}
WHOLE = {"start", "imports", "config", "build", "first_step", "validation", "checkpoints", "test", "end"}


def test_parts_sum_to_the_wall_time_of_the_command(tmp_path):
    command = [sys.executable, "-m", "src.train", *SMALL, "--run_dir", tmp_path / "run"]
    t0 = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "WANDB_MODE": "disabled"})
    whole = time.monotonic() - t0
    ledger = json.loads((tmp_path / "run/summary.json").read_text())["ledger"]
    assert set(ledger) >= STEPS | WHOLE
    assert all(seconds >= 0 for seconds in ledger.values())
    assert ledger["imports"] > 0.5  # torch and Lightning, not before
    # What is left is the writing of the summary, printing, and the end of the process.
    assert 0 <= whole - sum(ledger.values()) < max(0.02 * whole, 1.0)


def slow_forward() -> None:
    from src.models.classification import Classification

    step = Classification.training_step

    def slow(self, batch, batch_idx):
        time.sleep(0.02)
        return step(self, batch, batch_idx)

    Classification.training_step = slow


def test_a_slow_part_is_found(run, tmp_path):
    output = run([*SMALL, "--run_dir", tmp_path / "run"], first=slow_forward)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 59 * 0.02 < summary["ledger"]["forward"] < 59 * 0.06  # the first step has a part of its own
    assert summary["ledger"]["first_step"] > 0.02
    assert summary["seconds"] == pytest.approx(sum(summary["ledger"].values()), abs=0.06)
    assert "\ntime      " in output
    assert "forward " in output.split("\ntime      ")[1].splitlines()[0]
    from src import runs

    table = run([tmp_path / "run"], command=runs.main)
    (line,) = (line.split() for line in table.splitlines() if line.startswith("forward "))
    assert float(line[1]) == pytest.approx(summary["ledger"]["forward"], abs=0.006)


def slow_transform() -> None:
    from src.data.waves import WavesDataModule

    transform = WavesDataModule.on_after_batch_transfer

    def slow(self, batch, dataloader_idx):
        if self.trainer and self.trainer.testing:
            time.sleep(0.2)
        return transform(self, batch, dataloader_idx)

    WavesDataModule.on_after_batch_transfer = slow


def test_the_test_has_all_of_its_time(run, tmp_path):
    args = [*SMALL, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--run_dir", tmp_path / "run"]
    run(args, first=slow_transform)
    ledger = json.loads((tmp_path / "run/summary.json").read_text())["ledger"]
    assert ledger["test"] > 0.2
    assert ledger["transform"] < 0.2


def test_a_failed_run_has_one_too(run, tmp_path):
    run([*SMALL, "--model.optimizer.lr", "1e30", "--run_dir", tmp_path / "run"], code=5)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["ledger"]["first_step"] > 0
    assert "test" not in summary["ledger"]
    assert summary["seconds"] == pytest.approx(sum(summary["ledger"].values()), abs=0.06)


def test_inner_parts_take_their_time_out_of_the_outer_one(monkeypatch):
    now = iter([10.0, 11.0, 13.0, 17.0, 18.0, 20.0])
    monkeypatch.setattr("src.run.ledger.clock", lambda: next(now))
    ledger = Ledger()
    ledger.mark("outer")
    with suppress(KeyError), ledger.within("inner"):
        ledger.begin("left open")
        raise KeyError
    assert ledger.running == ["outer"]
    assert ledger.so_far() == {"start": 1.0, "outer": 4.0, "inner": 4.0, "left open": 1.0}
    assert shares({"a": 1.0, "b": 3.0}) == [("b", 0.75), ("a", 0.25)]


def test_age_of_a_process():
    code = "import time; t0 = time.monotonic(); from src.run.ledger import process_age; print(process_age())"
    t0 = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert 0 < float(done.stdout) < time.monotonic() - t0 + 0.02
    assert process_age() > 0
