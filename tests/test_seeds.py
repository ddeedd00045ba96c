import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SMALL

from src.run.seeds import summarize

SEEDS = [sys.executable, "-m", "src.train", *SMALL, "--trainer.max_epochs", "2", "--seeds"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_mean_and_spread_over_seeds(tmp_path):
    command = [*SEEDS, "2", "--seed_everything", "5", "--run_dir", str(tmp_path / "group")]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = [json.loads((tmp_path / f"group/seed-{s}/summary.json").read_text()) for s in (5, 6)]
    found = json.loads((tmp_path / "group/summary.json").read_text())["metrics"]["test/loss"]
    losses = [run["test/loss"] for run in runs]
    assert losses[0] != losses[1]
    assert found["values"] == losses
    assert found["mean"] == pytest.approx(np.mean(losses))
    assert found["std"] == pytest.approx(np.std(losses, ddof=1))
    assert f"{found['mean']:.4f} ± {found['std']:.4f}" in done.stdout
    again = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert again.stdout.count("This run is finished") == 2


def test_a_signal_stops_all_and_the_same_command_goes_on(tmp_path):
    command = [*SEEDS, "2", "--run_dir", str(tmp_path / "group")]
    process = subprocess.Popen([*command, "--trainer.max_epochs", "200"], cwd=ROOT, env=ENV, stderr=subprocess.PIPE)
    while not (tmp_path / "group/seed-0/metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"SIGTERM; a checkpoint is written" in errors
    assert not (tmp_path / "group/seed-1").exists()
    assert not (tmp_path / "group/summary.json").exists()


def test_a_wrong_number_of_seeds(run):
    from src import train

    assert "--seeds: 0 is less than 1" in run([*SMALL, "--seeds", 0], command=train.main, code=2)


def test_a_metric_that_is_nan_has_no_spread():
    found = summarize([{"test/auroc": float("nan"), "test/acc": 0.5}, {"test/auroc": 1.0, "test/acc": 0.7}])
    assert found["test/auroc"]["std"] is None
    assert found["test/acc"]["mean"] == pytest.approx(0.6)
