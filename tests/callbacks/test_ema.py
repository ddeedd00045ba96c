import csv
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    SMALL,
    SMALL_CNN,  # kind: images
)
from lightning.pytorch import LightningModule

from src import evaluate
from src.callbacks.ema import EMA
from src.networks.gpt import GPT  # kind: text

KEEP_ALL = ["--checkpoints.every_n_steps", 1, "--checkpoints.keep_last", 99]


def saved(run_dir, step):
    return torch.load(run_dir / f"checkpoints/step-{step:08d}.ckpt", weights_only=True)


# kind: images
def test_a_checkpoint_holds_the_average_and_what_is_trained(run, tmp_path):
    short = [*SMALL_CNN, *KEEP_ALL, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 12]
    run([*short, "--run_dir", tmp_path / "plain"])
    run([*short, "--ema.decay", 0.5, "--run_dir", tmp_path / "ema"])
    average = saved(tmp_path / "ema", 1)["state_dict"]
    for step in range(1, 13):
        trained = saved(tmp_path / "plain", step)["state_dict"]
        both = saved(tmp_path / "ema", step)
        assert all(torch.equal(both["ema"][name], t) for name, t in trained.items())  # training does not notice
        decay = min(0.5, (1 + step) / (10 + step))
        for name, t in trained.items():
            if step > 1 and t.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * t
                assert torch.allclose(average[name], both["state_dict"][name], atol=1e-6)
    assert not torch.equal(both["state_dict"]["network.head.1.weight"], both["ema"]["network.head.1.weight"])
    assert "network.blocks.0.1.running_var" in both["state_dict"]
    assert int(both["state_dict"]["network.blocks.0.1.num_batches_tracked"]) == 12


# end


def test_the_average_is_what_is_validated_and_tested(run, tmp_path):
    run([*SMALL, "--ema.decay", 0.9, "--run_dir", tmp_path / "run"])
    with open(tmp_path / "run/metrics.csv") as f:
        best = min(float(row["val/loss"]) for row in csv.DictReader(f) if row["val/loss"])
    output = run(["--run_dir", tmp_path / "run", "--split", "val"], command=evaluate.main)
    assert f"val/loss {best:.4f}" in output


# kind: text
def test_layers_that_share_a_weight_share_its_average():
    module, ema = LightningModule(), EMA(0.5)
    module.network = GPT(dim=8, depth=1, num_heads=2)
    ema.on_fit_start(None, module)
    start = module.network.embedding.weight.detach().clone()
    with torch.no_grad():
        module.network.embedding.weight.add_(1)
    checkpoint = {"state_dict": module.state_dict()}
    ema.on_save_checkpoint(SimpleNamespace(validating=False), module, checkpoint)
    for name in ("network.embedding.weight", "network.head.weight"):
        assert torch.equal(checkpoint["state_dict"][name], start)
        assert torch.equal(checkpoint["ema"][name], start + 1)
    ema.swap(None, module)
    assert torch.equal(module.network.head.weight, start)
    ema.swap(None, module)
    assert torch.equal(module.network.head.weight, start + 1)


# end


@pytest.mark.parametrize("decay", [1, -0.1])
def test_a_decay_that_is_none(run, tmp_path, decay):
    assert "ema.decay" in run([*SMALL, "--ema.decay", decay, "--run_dir", tmp_path / "run"], code=2)


def test_a_fork_goes_on_from_what_is_trained(run, tmp_path):
    """With an average or without one, whatever the run that it begins with had."""
    short = [*SMALL, "--trainer.max_epochs", 2]
    run([*short, "--trainer.limit_train_batches", 5, "--run_dir", tmp_path / "plain"])
    run([*short, "--trainer.limit_train_batches", 5, "--ema.decay", 0.9, "--run_dir", tmp_path / "ema"])
    longer = [*short, "--trainer.max_epochs", 3, "--trainer.limit_train_batches", 5]
    ends = []
    for origin in ("plain", "ema"):
        for name, average in (("without", []), ("with", ["--ema.decay", 0.9])):
            folder = tmp_path / f"{origin}_{name}"
            run([*longer, *average, "--resume", tmp_path / origin, "--run_dir", folder])
            last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
            ends.append(last.get("ema", last["state_dict"]))
    assert all(torch.equal(t, end[name]) for end in ends[1:] for name, t in ends[0].items())
