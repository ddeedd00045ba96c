"""Parameters that are frozen at first, and trained after so many epochs."""

import pytest
import torch
from conftest import (
    DIGITS,  # kind: images
    SMALL,
)

CHECKPOINTS = ["--checkpoints.every_n_steps", 1, "--trainer.log_every_n_steps", 1]
SHORT = ["--trainer.max_epochs", 3, "--trainer.limit_train_batches", 4, "--trainer.limit_val_batches", 2, *CHECKPOINTS]
HELD = ["--model.freeze", "['blocks.*']", "--model.unfreeze_epoch", 1]  # 4 steps frozen, 8 not
CONFIGS = {"mlp": [*SMALL, *SHORT, *HELD]}
# kind: images
CONFIGS["cnn"] = [*DIGITS, *SHORT, *HELD, "--model.network.widths", "[4,4]", "--model.network.hidden", 8]
CONFIGS["cnn"] += ["--data.batch_size", 32, "--pictures.enabled", "false"]
# end


def saved(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def die_at(step):
    def first():
        import os

        from lightning.pytorch.strategies import Strategy

        training_step = Strategy.training_step

        def dying(self, batch, batch_idx):
            loss = training_step(self, batch, batch_idx)
            if self.lightning_module.trainer.global_step == step:
                os.kill(os.getpid(), 9)
            return loss

        Strategy.training_step = dying

    return first


@pytest.mark.parametrize("config", CONFIGS)
def test_a_killed_run_goes_on_to_the_same_weights(start, run, tmp_path, config):
    """In the frozen part, at its end, and after it; nothing that is frozen moves, all of it does afterwards."""
    output = run([*CONFIGS[config], "--trainer.limit_test_batches", 2, "--run_dir", tmp_path / "whole"])
    assert "unfrozen  after 1 epochs: blocks.*" in output
    assert " frozen" in output  # as many parameters at the start
    whole, at = saved(tmp_path / "whole"), {}
    for step in (2, 3, 4, 6):
        args = [*CONFIGS[config], "--trainer.limit_test_batches", 2, "--run_dir", tmp_path / f"{step}"]
        assert start(args, first=die_at(step)).wait() == -9
        at[step] = saved(tmp_path / f"{step}")
        assert at[step]["global_step"] in (step - 1, step)  # the last one was being written
        assert "going on after" in run(args)
        end = saved(tmp_path / f"{step}")
        assert all(torch.equal(t, end["state_dict"][name]) for name, t in whole["state_dict"].items())
        assert same(whole["optimizer_states"], end["optimizer_states"])
        assert same(whole["lr_schedulers"], end["lr_schedulers"])
    first, before, after = (at[step]["state_dict"] for step in (2, 4, 6))
    held = [name for name in before if name.startswith("network.blocks.")]
    assert all(torch.equal(first[name], before[name]) for name in held)
    assert not any(torch.equal(before[name], after[name]) for name in held)
    assert not any(
        torch.equal(first[name], before[name]) for name in before if "network.head" in name and before[name].ndim
    )
    groups, states = whole["optimizer_states"][0]["param_groups"], whole["optimizer_states"][0]["state"]
    steps = [int(state["step"]) for _, state in sorted(states.items())]
    assert set(steps) == {8, 12}
    assert steps.count(8) == sum("running" not in name and "num_batches" not in name for name in held)
    assert len(groups) > 1
    assert len({group["lr"] for group in groups}) == 1
    assert sum(len(group["params"]) for group in groups) == len(steps)
    in_time = [len(group["params"]) for group in at[2]["optimizer_states"][0]["param_groups"]]
    assert in_time == [len(group["params"]) for group in groups]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("strategy", ["ddp", "src.strategies.fsdp.FSDP"])
def test_two_devices_train_as_one(run, tmp_path, strategy):
    """DDP and FSDP take no parameters later, so gradients of what is frozen are computed there, and dropped."""
    args = [*CONFIGS["mlp"], "--model.network.dropout", 0, "--trainer.accelerator", "cpu"]
    two = ["--trainer.devices", 2, "--trainer.strategy", strategy]
    run([*args, "--run_dir", tmp_path / "one"])
    run([*args, *two, "--run_dir", tmp_path / "two"], twins=1)
    run(
        [*args, *two, "--model.init_from", tmp_path / "one", "--trainer.max_epochs", 1, "--run_dir", tmp_path / "held"],
        twins=1,
    )
    from src.run import checkpoint

    one, two, held = (
        checkpoint.load(tmp_path / f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("one", "two", "held")
    )
    best = checkpoint.load(tmp_path / "one/checkpoints/best.ckpt")["state_dict"]
    for name, t in one.items():
        torch.testing.assert_close(t, two[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(held[name], best[name]) == name.startswith("network.blocks.")


def test_what_would_never_be_frozen_is_refused(run, tmp_path):
    for flags, text in (
        (["--model.unfreeze_epoch", 2], "model.unfreeze_epoch: 2 -> take 1 or more, and set model.freeze"),
        (["--model.freeze", "['blocks.*']", "--model.unfreeze_epoch", 0], "model.unfreeze_epoch: 0 -> take 1 or more"),
    ):
        assert text in run([*SMALL, *flags, "--run_dir", tmp_path / "run"], code=2)
    assert not (tmp_path / "run").exists()
