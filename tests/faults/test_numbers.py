"""What is not finite never reaches the weights, and the line says where it came from."""

import csv
import json
import os
from itertools import pairwise

import pytest
import torch
from conftest import SMALL, needs_bfloat16
from harness import EVERY_STEP, SELDOM, SETTINGS, STEPS, TINY, assert_same_end, assert_sound, together
from processes import ROOT, python
from test_resume import at_step

from src.callbacks import gradients
from src.callbacks.checkpoints import Checkpoints
from src.data.module import DataModule
from src.models.classification import Classification
from src.networks.mlp import MLP
from src.run import checkpoint

STEP = 5


def in_step(change, steps=(STEP,), micro_batch=None):
    """A hook: change the loss at some steps, also when a batch is run again."""

    def first():
        step = Classification.training_step

        def changed(self, batch, batch_idx):
            loss = step(self, batch, batch_idx)
            at = self.trainer.global_step in steps and micro_batch in (None, batch_idx % 2)
            return change(loss, self.network) if at else loss

        Classification.training_step = changed

    return first


def nan_loss(loss, network):
    return loss * float("nan")


def inf_gradient(loss, network):
    return loss + (sum(p.sum() for p in network.parameters()) * 0).abs().sqrt()  # 0, but its slope is infinite


def rows_of(folder, name):
    with open(folder / "metrics.csv") as f:
        return [float(row[name]) for row in csv.DictReader(f) if row.get(name)]


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=needs_bfloat16)])
def test_bfloat16_on_a_cpu_may_be_to_blame(run, tmp_path, precision):
    """torch 2.15 makes NaN there of some gradients of convolutions, at any learning rate."""
    args = [*TINY, "--trainer.precision", precision, "--run_dir", tmp_path / "run"]
    line = run(args, code=5, first=in_step(inf_gradient)).splitlines()[-1]
    assert "-> lower the learning rate" in line
    assert ("or try --trainer.precision 32-true" in line) == (precision != "32-true")


@pytest.mark.parametrize("kind", [[], ["--data.micro_batch_size", 16, "--trainer.limit_train_batches", 8]])
@pytest.mark.parametrize("change", [nan_loss, inf_gradient])
def test_stops_before_the_update(run, tmp_path, trained_once, change, kind):
    args = [*TINY, *EVERY_STEP, *kind, "--run_dir", tmp_path / "run"]
    micro_batch = 0 if kind else None
    output = run(args, code=5, first=in_step(change, micro_batch=micro_batch))
    (line,) = (line for line in output.splitlines() if line.startswith("error:"))
    assert "step 5: loss or gradient is not finite; samples " in line
    assert ("the loss" if change is nan_loss else "the gradient of") in line
    assert "-> " in line
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 5
    assert_sound(tmp_path / "run")
    assert checkpoint.read_manifest(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == STEP
    run(args)  # goes on from the last good step, to the same end
    assert_same_end(tmp_path / "run", trained_once([*TINY, *EVERY_STEP, *kind]))


def test_on_a_device_nothing_bad_is_saved_before_the_host_looks(run, tmp_path):
    def blind():
        gradients.Gradients.on_train_start = lambda self, trainer, module: setattr(self, "on_host", False)

    args = [*TINY, *SELDOM, "--trainer.log_every_n_steps", 100, "--run_dir", tmp_path / "run"]
    for fused in ("true", "false"):
        flags = ["--model.optimizer.fused", fused, "--run_dir", tmp_path / fused]
        output = run([*args, *flags], code=5, first=together(blind, in_step(nan_loss)))
        assert "step 5: " in output
        state = checkpoint.load(tmp_path / fused / "checkpoints/last.ckpt")
        assert state["global_step"] == 4  # after the first epoch
        assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_names_the_samples_whose_input_is_bad(run, tmp_path):
    def first():
        transfer = DataModule.on_after_batch_transfer

        def dirty(self, batch, dataloader_idx):
            batch = transfer(self, batch, dataloader_idx)
            x = batch["x"].clone()
            if len(x) == 32 and self.trainer and self.trainer.training and self.trainer.global_step == STEP:
                x[7] = float("inf")
            return {**batch, "x": x}

        DataModule.on_after_batch_transfer = dirty

    output = run([*TINY, "--run_dir", tmp_path / "run"], code=5, first=first)
    assert "step 5: " in output
    line = output.splitlines()[-1]
    assert "first in the input x -> clean these samples" in line
    assert len(line.split("samples ")[1].split(" of train")[0].split(", ")) == 1


def test_names_the_module(run, tmp_path):
    def first():
        forward = MLP.forward

        def with_a_log(self, x):
            return forward(self, x).abs().sub(1e9).log()

        MLP.forward = with_a_log

    output = run([*TINY, "--trainer.num_sanity_val_steps", 0, "--run_dir", tmp_path / "run"], code=5, first=first)
    assert "step 0: " in output
    assert "first in the output of network (MLP)" in output


@pytest.mark.parametrize("change", [nan_loss, inf_gradient])
def test_skips_and_goes_on(run, tmp_path, change):
    args = [*TINY, *SELDOM, "--gradients.nonfinite", "skip", "--run_dir", tmp_path / "run"]
    run(args, first=in_step(change, steps=(STEP, STEP + 1)))
    assert rows_of(tmp_path / "run", "optim/skipped") == [0, 1, 2, 2]
    state = checkpoint.load(tmp_path / "run/checkpoints/last.ckpt")
    assert all(t.isfinite().all() for t in state["state_dict"].values())
    assert {int(s["step"]) for s in state["optimizer_states"][0]["state"].values()} == {STEPS - 2}


# kind: images
@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("micro", [32, 16])
def test_a_skipped_step_leaves_batch_norms_as_they_were(start, run, tmp_path, on_host, micro):
    def bad_input():
        if not on_host:
            begin = gradients.Gradients.on_train_start
            change = lambda self, *args: (begin(self, *args), setattr(self, "on_host", False))  # noqa: E731
            gradients.Gradients.on_train_start = change
        step = Classification.training_step

        def changed(self, batch, batch_idx):
            bad = self.trainer.global_step == STEP
            return step(self, {**batch, "x": batch["x"] * float("nan")} if bad else batch, batch_idx)

        Classification.training_step = changed

    args = [*SETTINGS["cnn"], "--data.micro_batch_size", micro, "--trainer.limit_train_batches", 128 // micro]
    args += ["--gradients.nonfinite", "skip", "--checkpoints.keep_last", 20]
    run([*args, "--run_dir", tmp_path / "whole"], first=bad_input)
    files = [tmp_path / f"whole/checkpoints/step-{n:08d}.ckpt" for n in (STEP - 1, STEP, STEP + 1, STEP + 2)]
    states = [{k: v for k, v in checkpoint.load(file)["state_dict"].items() if "running" in k} for file in files]
    same = [[torch.equal(a[k], b[k]) for k in a] for a, b in pairwise(states)]
    assert [all(found) for found in same] == [False, True, False]
    child = start([*args, "--run_dir", tmp_path / "killed"], first=together(bad_input, at_step(STEP + 1)))
    assert child.wait() == -9, child.output
    run([*args, "--run_dir", tmp_path / "killed"], first=bad_input)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


# end


def test_too_many_skips_stop_the_run(run, tmp_path):
    args = [*TINY, *SELDOM, "--gradients.nonfinite", "skip", "--gradients.max_skips", 2, "--run_dir", tmp_path / "run"]
    output = run(args, code=5, first=in_step(nan_loss, steps=(2, 4, 5, 7, 8, 9)))
    assert "step 7, the first of 3 in a row: " in output


def test_killed_at_each_step_while_it_skips(start, run, tmp_path):
    hook = in_step(nan_loss, steps=(3, 7, 8))
    args = [*TINY, *EVERY_STEP, "--gradients.nonfinite", "skip"]
    run([*args, "--run_dir", tmp_path / "whole"], first=hook)
    assert rows_of(tmp_path / "whole", "optim/skipped")[-1] == 3
    for step in range(STEPS):
        child = start([*args, "--run_dir", tmp_path / "killed"], first=together(hook, at_step(step)))
        assert child.wait() == -9, child.output
    run([*args, "--run_dir", tmp_path / "killed"], first=hook)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_a_healthy_run_of_a_thousand_steps_skips_none(run, tmp_path):
    flags = ["--trainer.max_epochs", -1, "--trainer.max_steps", 1000, "--gradients.nonfinite", "skip"]
    run([*SMALL, *flags, "--trainer.check_val_every_n_epoch", 25, "--run_dir", tmp_path / "healthy"])
    assert rows_of(tmp_path / "healthy", "optim/skipped")[-1] == 0


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_metric_that_is_not_finite_is_never_the_best(run, tmp_path, value):
    def first():
        score, calls = Checkpoints.score, [0]

        def sometimes(self, trainer):
            calls[0] += 1
            return float(value) if calls[0] in (2, 4) else score(self, trainer)

        Checkpoints.score = sometimes

    for mode in ("min", "max"):
        folder = tmp_path / mode
        run([*TINY, *SELDOM, "--checkpoints.mode", mode, "--run_dir", folder], first=first)
        best = json.loads((folder / "summary.json").read_text())["best"]
        assert torch.tensor(best["val/loss"]).isfinite()
        assert best["step"] == 8  # the first validation after the sanity check and the last are not finite


def targets_of(change):
    """A hook: other targets in training."""

    def first():
        step = Classification.training_step

        def changed(self, batch, batch_idx):
            return step(self, {**batch, "targets": change(batch["targets"])}, batch_idx)

        Classification.training_step = changed

    return first


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda t: t + 70, 3, "the network has 10 classes -> mend the labels"),
        (lambda t: t - 1, 3, "out of bounds"),
        (lambda t: torch.full_like(t, -100), 5, "first in the loss -> look at their targets"),
    ],
    ids=["too large", "-1", "all ignored"],
)
def test_bad_targets(run, tmp_path, change, code, said):
    output = run([*TINY, "--run_dir", tmp_path / "run"], code=code, first=targets_of(change))
    assert said in output.splitlines()[-1]
    assert "Traceback" not in output


BROADCASTS = """
import sys
import torch
from src.models.classification import Classification
from src.train import main
Classification.training_step = lambda self, batch, i: torch.nn.functional.mse_loss(
    self(batch["x"])[:, :1], batch["targets"].float())
sys.exit(main())
"""


def test_a_loss_that_would_broadcast_is_refused(loaded, tmp_path):
    args = ["-c", BROADCASTS, *map(str, TINY), "--run_dir", str(tmp_path / "run")]
    child = python(args, ROOT, dict(os.environ), tmp_path / "output")
    assert child.wait() == 3, child.output
    assert "give targets the shape of the network's output" in child.output.splitlines()[-1]


@pytest.mark.parametrize(("change", "policy"), [(inf_gradient, "stop"), (nan_loss, "skip")])
def test_of_two_processes_one_has_it_and_both_agree(run, tmp_path, change, policy):
    def of_the_second(loss, network):
        return change(loss, network) if os.environ.get("LOCAL_RANK") == "1" else loss

    flags = ["--trainer.strategy", "ddp", "--trainer.devices", 2, "--trainer.accelerator", "cpu"]
    args = [*TINY, *SELDOM, *flags, "--gradients.nonfinite", policy, "--run_dir", tmp_path / "run"]
    output = run(args, code=5 if policy == "stop" else 0, first=in_step(of_the_second), twins=1)
    if policy == "stop":
        assert "step 5: " in output
        assert "the gradient of" in output
    else:
        assert rows_of(tmp_path / "run", "optim/skipped")[-1] == 1
    state = checkpoint.load(tmp_path / "run/checkpoints/last.ckpt")
    assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_grad_norm_and_update_ratio_are_those_of_a_step(run, tmp_path):
    run([*TINY, *EVERY_STEP, "--checkpoints.keep_last", 99, "--run_dir", tmp_path / "run"])
    weights = [checkpoint.load(tmp_path / f"run/checkpoints/step-{n:08d}.ckpt")["state_dict"] for n in (STEP, STEP + 1)]
    before, after = (torch.cat([t.flatten() for t in state.values()]) for state in weights)
    found = rows_of(tmp_path / "run", "optim/update_ratio")[1]  # of the sixth step
    assert found == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
    assert all(norm > 0 for norm in rows_of(tmp_path / "run", "optim/grad_norm"))
