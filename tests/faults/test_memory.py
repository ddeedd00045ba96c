"""Out of memory: what to do about it, or a smaller micro-batch in the same process, with the same losses."""

import csv
import json

import pytest
import torch
from harness import SELDOM, TINY, assert_same_end

from src.models.classification import Classification

# Without dropout and batch norm the size of a micro-batch changes no more than the last bits.
ARGS = [*TINY, *SELDOM, "--model.network.dropout", 0, "--trainer.max_epochs", 6]
AUTO = ["--data.auto_micro_batch", "true"]


def memory_for(samples, from_step=0, error=torch.OutOfMemoryError, phase="training_step"):
    """A hook: no memory for more samples at once, from a step on."""

    def first():
        step = getattr(Classification, phase)

        def limited(self, batch, batch_idx):
            if len(batch["x"]) > samples and self.trainer.global_step >= from_step:
                raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB.")
            return step(self, batch, batch_idx)

        setattr(Classification, phase, limited)

    return first


def curve(folder):
    with open(folder / "metrics.csv") as f:
        rows = list(csv.DictReader(f))
    names = ("train/loss", "val/loss", "optim/lr", "optim/grad_norm")
    return {(int(row["step"]), name): float(row[name]) for row in rows for name in names if row[name]}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_names_the_cheapest_levers(run, tmp_path, error):
    line = run([*ARGS, "--run_dir", tmp_path / "run"], code=75, first=memory_for(0, 2, error)).splitlines()[-1]
    assert line.startswith(
        "error: out of memory after 2 steps with 32 samples at once on cpu: weights 4,840 B, gradients"
    )
    assert "data.micro_batch_size 16 saves half of the activations; data.auto_micro_batch true does that" in line
    assert "trainer.precision bf16-mixed saves about half of the activations" in line
    assert "SGD with momentum, saves 4,8" in line
    assert "Traceback" not in line


@pytest.mark.parametrize("from_step", [0, 1, 14, 20])
def test_halves_the_micro_batch_and_keeps_the_curve(run, tmp_path, from_step):
    run([*ARGS, "--run_dir", tmp_path / "whole"])
    args = [*ARGS, *AUTO, "--run_dir", tmp_path / "run"]
    output = run(args, first=memory_for(8, from_step))
    steps = f"Out of memory after {from_step} steps with "
    assert f"{steps}32 samples at once: going on with 16." in output
    assert "16 samples at once: going on with 8." in output
    found, expected = curve(tmp_path / "run"), curve(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert [found[key] for key in expected] == pytest.approx(list(expected.values()), rel=2e-4)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["epochs"]) == ("finished", 24, 6)


def test_a_window_of_the_log_that_was_open_goes_on(run, tmp_path):
    every = ["--checkpoints.every_n_steps", 1, "--trainer.log_every_n_steps", 4]
    run([*ARGS, *every, "--run_dir", tmp_path / "whole"])
    run([*ARGS, *every, *AUTO, "--run_dir", tmp_path / "run"], first=memory_for(16, 6))
    found, expected = curve(tmp_path / "run"), curve(tmp_path / "whole")
    assert [found[key] for key in expected] == pytest.approx(list(expected.values()), rel=2e-4)


@pytest.mark.parametrize("phase", ["validation_step", "test_step"])
def test_also_in_validation_and_test(run, tmp_path, phase):
    run([*ARGS, *AUTO, "--run_dir", tmp_path / "run"], first=memory_for(16, 1, phase=phase))


def test_one_sample_cannot_be_halved(run, tmp_path):
    output = run([*ARGS, *AUTO, "--run_dir", tmp_path / "run"], code=75, first=memory_for(0))
    assert "with 2 samples at once: going on with 1." in output
    assert "out of memory after 0 steps with 1 samples at once" in output.splitlines()[-1]
    assert "micro_batch_size" not in output.splitlines()[-1]


def test_a_run_goes_on_with_another_micro_batch(start, run, tmp_path):
    args = [*ARGS, "--run_dir", tmp_path / "run"]
    run(args, code=75, first=memory_for(16, 9))
    run([*args, "--data.micro_batch_size", 16, "--trainer.limit_train_batches", 4], code=0, first=memory_for(16, 9))
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 0


def test_without_a_shortage_it_changes_nothing(run, tmp_path):
    run([*ARGS, "--run_dir", tmp_path / "whole"])
    run([*ARGS, *AUTO, "--run_dir", tmp_path / "run"])
    assert_same_end(tmp_path / "run", tmp_path / "whole")
