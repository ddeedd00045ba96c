import copy
import json

import pytest
import torch
from conftest import (
    DIGITS,  # kind: images
    SMALL,
    needs_bfloat16,
)
from torch import nn

from src.optim.muon import Muon, orthogonal

SHAPES = [(8, 8), (8, 8), (16, 4), (4, 16)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], number: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_singular_values_come_near_one():
    x = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    y = orthogonal(x)
    assert y.dtype == x.dtype
    assert ((torch.linalg.svdvals(y) > 0.6) & (torch.linalg.svdvals(y) < 1.3)).all()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert (u.mT @ y @ v.mT).diagonal(dim1=1, dim2=2).min() > 0.6  # the same singular vectors


def test_steps_are_those_of_torch():
    ours, theirs = matrices(), matrices()
    steps(Muon(ours, lr=0.1, weight_decay=0.1), ours, 5)
    steps(torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1), theirs, 5)
    for a, b, start in zip(ours, theirs, matrices(), strict=True):
        assert (a - start).norm() > 0.5
        assert torch.allclose(a, b, atol=0.02)  # it computes in bfloat16


def test_a_kernel_is_a_matrix_of_its_outputs():
    kernel = nn.Parameter(torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0)))
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    for p in (kernel, flat):
        p.grad = torch.randn(8, 18, generator=torch.Generator().manual_seed(1)).view_as(p)
        Muon([p]).step()
    assert torch.equal(kernel.flatten(1), flat)


def test_all_else_is_adamws_bit_for_bit():
    ours, theirs = matrices(), matrices()
    own = Muon([{"params": ours, "hidden": False}], adam_lr=0.01, weight_decay=0.1)
    steps(own, ours, 5)
    steps(torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True), theirs, 5)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_state_comes_back_bit_for_bit():
    def groups(params):
        return [{"params": params[:2]}, {"params": params[2:], "hidden": False}]

    params = matrices()
    optimizer = Muon(groups(params))
    steps(optimizer, params, 3)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    other = Muon(groups(copies), lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, params, 2)
    steps(other, copies, 2)
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def test_a_step_with_found_inf_changes_nothing():
    params = matrices()
    optimizer = Muon([{"params": params[:2]}, {"params": params[2:], "hidden": False}])
    steps(optimizer, params, 2)
    before = [t.clone() for p in params for t in (p.detach(), *optimizer.state[p].values())]
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    after = [t for p in params for t in (p.detach(), *optimizer.state[p].values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    optimizer.found_inf = torch.tensor(0.0)
    steps(optimizer, params, 1)
    assert not any(torch.equal(a, p) for a, p in zip(before[::2], params, strict=False))


def test_rates_below_zero_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        Muon(matrices(), lr=-0.1)


# kind: images
def test_learns_the_digits(run, tmp_path):
    flags = ["--model.optimizer", "src.optim.muon.Muon", "--trainer.max_epochs", 4, "--pictures.enabled", "false"]
    run([*DIGITS, *flags, "--model.network.widths", "[16,16]", "--run_dir", tmp_path / "run"])
    assert json.loads((tmp_path / "run/summary.json").read_text())["test/acc"] > 0.93


# end


@pytest.mark.parametrize("optimizer", ["torch.optim.AdamW", "src.optim.muon.Muon"])
@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=needs_bfloat16)])
def test_clipping_goes_with_fused_optimizers(run, tmp_path, optimizer, precision):
    """A clip to nothing leaves AdamW and Muon without a gradient to speak of, so eps keeps all weights in place."""
    flags = ["--trainer.gradient_clip_val", 1e-20, "--trainer.precision", precision, "--model.schedule", "null"]
    flags += ["--model.optimizer", optimizer, "--model.optimizer.weight_decay", 0, "--run_dir", tmp_path / "run"]
    flags += ["--model.optimizer.fused", "true"] if "AdamW" in optimizer else []
    run([*SMALL, *flags, "--checkpoints.every_n_steps", 1, "--checkpoints.keep_last", 9, "--trainer.max_epochs", 1])
    first, last = (
        torch.load(tmp_path / f"run/checkpoints/step-{n:08d}.ckpt", weights_only=True)["state_dict"] for n in (19, 20)
    )
    moved = [(first[name] - last[name]).abs().max() for name in first if "weight" in name]
    assert max(moved) < 1e-6
