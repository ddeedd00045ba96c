"""Out of memory: what to do about it, and that it works."""

import csv
import re

import pytest
import torch
from harness import SELDOM, TINY

from src.models.classification import Classification
from src.run.device import has_bfloat16

# Without dropout and batch norm the size of a micro-batch changes no more than the last bits.
ARGS = [*TINY, *SELDOM, "--model.network.dropout", 0, "--trainer.max_epochs", 6]


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
    assert line.startswith("error: out of memory after 2 steps with 32 samples at once on cpu -> ")
    assert "data.micro_batch_size 16 saves half of the activations (the same command with that flag goes on); " in line
    lever = "trainer.precision bf16-mixed saves about half of the activations"
    assert (lever in line) == has_bfloat16(torch.device("cpu"))
    assert "; model.activation_checkpointing true saves" in line
    assert line.endswith("; a smaller model.network")
    assert "Traceback" not in line


def test_one_sample_cannot_be_halved(run, tmp_path):
    args = [*ARGS, "--data.micro_batch_size", 1, "--trainer.limit_train_batches", 32, "--run_dir", tmp_path / "run"]
    line = run(args, code=75, first=memory_for(0)).splitlines()[-1]
    assert "out of memory after 0 steps with 1 samples at once" in line
    assert "micro_batch_size" not in line


@pytest.mark.parametrize("phase", ["validation_step", "test_step"])
def test_also_in_validation_and_test(run, tmp_path, phase):
    line = run([*ARGS, "--run_dir", tmp_path / "run"], code=75, first=memory_for(16, 1, phase=phase)).splitlines()[-1]
    assert "data.micro_batch_size 16 saves" in line


@pytest.mark.parametrize("from_step", [1, 9])
def test_the_same_command_with_the_flag_that_is_named_goes_on_with_the_same_curve(run, tmp_path, from_step):
    args = [*TINY, "--checkpoints.every_n_steps", 1, "--model.network.dropout", 0, "--trainer.limit_train_batches", 1.0]
    args += ["--trainer.limit_val_batches", 1.0]
    run([*args, "--run_dir", tmp_path / "whole"])
    args += ["--run_dir", tmp_path / "run"]
    line = run(args, code=75, first=memory_for(16, from_step)).splitlines()[-1]
    flag = re.search(r"data\.micro_batch_size \d+", line)[0].split()
    output = run([*args, f"--{flag[0]}", flag[1]], first=memory_for(16, from_step))
    assert f"going on after {from_step} steps" in output
    found, expected = curve(tmp_path / "run"), curve(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert [found[key] for key in expected] == pytest.approx(list(expected.values()), rel=2e-4)
