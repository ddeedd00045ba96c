"""What the optimizer gets, on the host's way and on the device's (which needs no GPU: it is the same arithmetic)."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import get_total_norm

from src.callbacks.gradients import Gradients, report
from src.run.errors import ConfigError, NumericsError

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
}
LOSSES = (1.0,) * 9


def train(optimizer, bad=(), on_host=True, losses=LOSSES, skip_by_hand=False, value=math.nan, **how):
    """Steps with given gradients, those of the bad steps not finite; gives weights, optimizer state and callback."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(5))
    optimizer, gradients = OPTIMIZERS[optimizer]([param]), Gradients(**{"nonfinite": "skip", **how})
    gradients.on_host = on_host
    for step, loss in enumerate(losses):
        param.grad = torch.randn(5)
        if step in bad:
            if skip_by_hand:
                continue
            param.grad[2:] = value
        trainer = SimpleNamespace(world_size=1, global_step=step)
        gradients.norm = get_total_norm([param.grad])
        gradients.taken[step] = [(0, step)]
        gradients.guard(trainer, optimizer, [param], torch.tensor(loss))
        optimizer.step()
    return param.detach(), optimizer.state_dict()["state"], gradients


def same(a, b):
    return all(torch.equal(a[0][name], b[0][name]) for name in a[0]) and a[0].keys() == b[0].keys()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [(0,), (3,), (0, 1), (4, 5, 8)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_cpu_a_skipped_step_has_not_happened(name, bad, value):
    weights, state, gradients = train(name, bad, value=value)
    expected, expected_state, _ = train(name, bad, skip_by_hand=True)
    assert torch.equal(weights, expected)
    assert same(state, expected_state)
    assert gradients.counts[3] == len(bad)


@pytest.mark.parametrize("bad", [(0,), (3,), (0, 1), (4, 5, 8)])
@pytest.mark.parametrize("name", ["fused SGD", "fused AdamW"])
def test_a_fused_optimizer_leaves_the_step_out_on_the_device(name, bad):
    weights, state, gradients = train(name, bad, on_host=False)
    expected, expected_state, _ = train(name, bad, skip_by_hand=True)
    assert torch.equal(weights, expected)
    assert same(state, expected_state)
    assert gradients.counts[3] == len(bad)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_any_other_gets_zeros_on_the_device(name):
    weights, state, _ = train(name, (3,), on_host=False)
    assert weights.isfinite().all()
    assert all(t.isfinite().all() for t in state[0].values() if torch.is_tensor(t))
    assert not torch.equal(weights, train(name, (3,), skip_by_hand=True)[0])  # momentum goes on: said in the docstring


@pytest.mark.parametrize("on_host", [True, False])
def test_finite_gradients_whose_norm_overflows_pass(on_host):
    _, state, gradients = train("fused AdamW", (3,), on_host=on_host, value=3e38)
    assert get_total_norm([torch.full((3,), 3e38)]).isinf()
    assert gradients.counts[3] == 0
    assert int(state[0]["step"]) == len(LOSSES)


def test_the_device_holds_all_steps_back_until_the_host_looks():
    weights, _, gradients = train("fused AdamW", (3,), on_host=False, nonfinite="stop")
    assert torch.equal(weights, train("fused AdamW", range(3, 9), skip_by_hand=True)[0])
    assert gradients.counts.tolist() == [3, 0, 1, 6]


@pytest.mark.parametrize("on_host", [True, False])
def test_too_many_in_a_row_stop_the_run(monkeypatch, on_host):
    monkeypatch.setattr("src.callbacks.gradients.report", lambda trainer, step, places, limit: f"step {step}")
    train("AdamW", (1, 2, 4, 5, 7, 8), max_skips=2)
    if on_host:
        with pytest.raises(NumericsError, match="step 4"):
            train("AdamW", (1, 4, 5, 6, 8), max_skips=2)
    else:
        gradients = train("fused AdamW", (1, 4, 5, 6, 8), on_host=False, max_skips=2)[2]
        with pytest.raises(NumericsError, match="step 4"):
            gradients.look(None)


def test_its_state_goes_on():
    _, _, gradients = train("AdamW", (2, 3), losses=(1.0, 2.0, 3.0, 4.0, 5.0))
    again = Gradients(nonfinite="skip")
    again.load_state_dict(gradients.state_dict())
    assert again.counts.tolist() == [2, 0, 2, 2]
    Gradients().load_state_dict(gradients.state_dict())  # with other settings, too


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="max_skips: 0"):
        Gradients(max_skips=0)


def test_plain_sgd_has_no_state_and_is_not_waited_for():
    OPTIMIZERS["plain SGD"] = lambda p: torch.optim.SGD(p, lr=0.1, fused=True)
    gradients = train("plain SGD", (3,), on_host=False, nonfinite="stop")[2]  # the host would have raised
    assert gradients.counts.tolist() == [3, 0, 1, 6]


def test_where_the_batch_cannot_be_run_again_the_error_is_told_all_the_same():
    def fetch(*place):
        raise OSError("disk gone")

    trainer = SimpleNamespace(world_size=1, precision="32-true", datamodule=SimpleNamespace(fetch=fetch))
    assert "step 7: loss or gradient is not finite" in report(trainer, 7, [(0, 7)], 0)
