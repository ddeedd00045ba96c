import json
import signal
import time

import numpy as np
import pytest
from conftest import SMALL

from src import runs
from src.loggers.metrics_csv import read_curves


@pytest.fixture
def trained(run, tmp_path):
    for name, flags in {"a": [], "b": ["--seed_everything", 1], "c": ["--data.batch_size", 32]}.items():
        run([*SMALL, *flags, "--trainer.max_epochs", 1, "--run_dir", tmp_path / "logs" / name])
    return tmp_path / "logs"


def row(output: str, name: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(name)).split()


def test_side_by_side(trained, run):
    output = run([trained / "a", trained / "c", "--output", trained / "c.png"], command=runs.main)
    assert row(output, "data.batch_size") == ["data.batch_size", "64", "32"]
    a, c = (json.loads((trained / name / "summary.json").read_text()) for name in "ac")
    assert row(output, "test/acc") == ["test/acc", f"{a['test/acc']:.4g}", f"{c['test/acc']:.4g}"]
    assert (trained / "c.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_differ_in_their_seed_are_one_column(trained, run):
    output = run([trained / "a", trained / "b"], command=runs.main)
    assert "data.seed" not in output
    accs = [json.loads((trained / name / "summary.json").read_text())["test/acc"] for name in "ab"]
    shown = row(output, "test/acc")
    assert float(shown[1]) == pytest.approx(np.mean(accs), rel=1e-3)
    assert float(shown[3]) == pytest.approx(np.std(accs, ddof=1), rel=0.05, abs=1e-12)
    assert shown[4] == "(n=2)"
    assert (trained / "b/compare.png").exists()


def test_why_a_run_stopped(start, run, tmp_path):
    child = start([*SMALL, "--trainer.max_epochs", 1000, "--run_dir", tmp_path / "run"])
    while not (tmp_path / "run/metrics.csv").exists():
        time.sleep(0.05)
    assert row(run([tmp_path / "run"], command=runs.main), str(tmp_path))[1] == "training"
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    output = run([tmp_path / "run"], command=runs.main)
    assert row(output, str(tmp_path))[1] == "stopped"
    assert "exit code 143: after" in output
    assert "SIGTERM" in output


def test_a_run_that_was_killed_is_cut_short(start, run, tmp_path):
    child = start([*SMALL, "--trainer.max_epochs", 1000, "--run_dir", tmp_path / "run"])
    while not (tmp_path / "run/metrics.csv").exists():
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert "cut short" in run([tmp_path / "run"], command=runs.main)


def test_no_run_is_one_line(run, tmp_path):
    assert run([tmp_path], command=runs.main, code=4).startswith(f"error: {tmp_path}: no run is here")
    assert "must end in .png" in run([tmp_path, "--output", "x.jpg"], command=runs.main, code=2)


def test_curves_are_read_from_metrics(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/loss\n0,0,2.5,\n1,0,1.5,3.0\n2,0,")
    curves = read_curves(tmp_path, ("train/", "val/"))
    assert {name: (s.tolist(), v.tolist()) for name, (s, v) in curves.items()} == {
        "train/loss": ([0, 1], [2.5, 1.5]),
        "val/loss": ([1], [3.0]),
    }
