import csv
import json

import torch
from conftest import SMALL


def test_a_run_leaves_a_whole_folder(run, tmp_path):
    output = run([*SMALL, "--run_dir", tmp_path / "run"])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 60
    assert summary["test/acc"] > 0.5
    assert f"acc {summary['test/acc']:.4f}" in output
    assert summary["best"]["step"] <= 60
    assert f"best      step {summary['best']['step']}, val/loss {summary['best']['val/loss']:.4g}" in output
    with open(tmp_path / "run/metrics.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["step"] for row in rows if row["val/acc"]] == ["19", "39", "59"]
    for name in ("best", "last"):
        assert "state_dict" in torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)


def test_a_finished_run_is_left_alone(run, tmp_path):
    run([*SMALL, "--run_dir", tmp_path / "run"])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert "finished" in run([*SMALL, "--run_dir", tmp_path / "run"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_another_config_is_refused(run, tmp_path):
    run([*SMALL, "--run_dir", tmp_path / "run"])
    output = run([*SMALL, "--run_dir", tmp_path / "run", "--data.batch_size", "32"], code=2)
    assert "data.batch_size was 64, now 32" in output
