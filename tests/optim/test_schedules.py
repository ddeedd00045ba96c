from itertools import pairwise

import pytest
import torch

from src.optim.schedules import WarmupCosine, WarmupStableDecay


def test_rises_then_falls_to_the_final_share():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = WarmupCosine(optimizer, num_steps=100, warmup_frac=0.1, final_frac=0.1)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2 / 11)
    assert max(rates) == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2 * 0.55)
    assert rates[100] == pytest.approx(0.2)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_state_is_plain_and_comes_back():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = WarmupCosine(optimizer, num_steps=10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    other = WarmupCosine(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0), num_steps=10)
    other.load_state_dict(schedule.state_dict())
    assert other.factor(other.last_epoch) == schedule.factor(schedule.last_epoch)
    assert other.last_epoch == 4


def test_stable_decay_rises_stays_and_falls():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupStableDecay(optimizer, num_steps=100, warmup_frac=0.1, decay_frac=0.3, final_frac=0.1)
    rates = [schedule.factor(step) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[10:71]) == {1.0}
    assert rates[85] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 / 11)


def test_without_decay_it_stays():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupStableDecay(optimizer, num_steps=50, warmup_frac=0.0, decay_frac=0.0)
    assert {schedule.factor(step) for step in range(50)} == {1.0}
