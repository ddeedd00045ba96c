from itertools import pairwise

import pytest
import torch
from conftest import SMALL

from src.loggers.curves import read_curves
from src.optim.schedules import WarmupCosine, WarmupStableDecay


def factor(schedule, step):
    return schedule.lr_lambdas[0](step)


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
    assert factor(other, other.last_epoch) == factor(schedule, schedule.last_epoch)
    assert other.last_epoch == 4
    longer = WarmupCosine(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0), num_steps=20)
    longer.load_state_dict(schedule.state_dict())
    assert factor(longer, 10) == pytest.approx(0.5, abs=0.05)  # of its own length: a fork may train for longer
    assert all(type(v) in (int, float, bool, list) for v in schedule.state_dict().values())


def test_stable_decay_rises_stays_and_falls():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupStableDecay(optimizer, num_steps=100, warmup_frac=0.1, decay_frac=0.3, final_frac=0.1)
    rates = [factor(schedule, step) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[10:71]) == {1.0}
    assert rates[85] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 / 11)


def test_without_decay_it_stays():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupStableDecay(optimizer, num_steps=50, warmup_frac=0.0, decay_frac=0.0)
    assert {factor(schedule, step) for step in range(50)} == {1.0}


def test_shares_are_from_0_to_1():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="warmup_frac is from 0 to 1"):
        WarmupCosine(optimizer, num_steps=10, warmup_frac=3)
    with pytest.raises(ValueError, match="decay_frac is from 0 to 1"):
        WarmupStableDecay(optimizer, num_steps=10, decay_frac=-1)


OURS, TORCH = "src.optim.schedules.", "torch.optim.lr_scheduler."
# What stands in a config -> rates after some of the 60 steps, as shares of 0.01.
RATES = {
    "warm-up cosine": ([OURS + "WarmupCosine", "warmup_frac", 0.1, "final_frac", 0.1], {6: 1.0, 33: 0.55, 59: 0.101}),
    "stable, then decay": ([OURS + "WarmupStableDecay", "decay_frac", 1 / 3], {3: 1.0, 40: 1.0, 50: 0.5, 55: 0.25}),
    "constant": ([OURS + "WarmupStableDecay", "warmup_frac", 0.05, "decay_frac", 0], {1: 0.5, 3: 1.0, 59: 1.0}),
    "one cycle": ([TORCH + "OneCycleLR", "max_lr", 0.01, "pct_start", 0.5], {1: 0.0428, 29: 1.0, 44: 0.5}),
    "plateau": ([TORCH + "ReduceLROnPlateau", "patience", 0, "threshold", 0.99], {20: 1.0, 21: 1.0, 41: 0.1}),
}


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--trainer.check_val_every_n_epoch", 2], {120: 1.0, 121: 0.1}),  # the third validation is the second bad one
        (["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", 30], {41: 1.0}),
    ],
)
def test_a_plateau_waits_for_validations(run, tmp_path, flags, wanted):
    plateau = ["--model.schedule", TORCH + "ReduceLROnPlateau", "--model.schedule.threshold", 0.99]
    more = ["--model.schedule.patience", 1, "--trainer.max_epochs", 7, "--trainer.log_every_n_steps", 1]
    run([*SMALL, *plateau, *more, *flags, "--model.optimizer.lr", 0.01, "--run_dir", tmp_path / "run"])
    steps, rates = read_curves(tmp_path / "run", ("optim/lr",))["optim/lr"]
    found = {step + 1: rate / 0.01 for step, rate in zip(steps, rates, strict=True)}
    assert {step: found[step] for step in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize("kind", RATES)
def test_rates_of_a_run(run, tmp_path, kind):
    (path, *pairs), wanted = RATES[kind]
    flags = ["--model.schedule", path, "--model.optimizer.lr", 0.01, "--trainer.log_every_n_steps", 1]
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        flags += [f"--model.schedule.{name}", value]
    run([*SMALL, *flags, "--run_dir", tmp_path / "run"])
    steps, rates = read_curves(tmp_path / "run", ("optim/lr",))["optim/lr"]
    found = {step + 1: rate for step, rate in zip(steps, rates, strict=True)}  # rows count from 0
    assert {step: found[step] / 0.01 for step in wanted} == pytest.approx(wanted, rel=0.02)
