"""A run that is killed, however often, ends as one that was not."""

import random
import time

import pytest
from harness import (
    EVERY_STEP,
    SELDOM,
    STEPS,
    TINY,
    assert_same_end,
    assert_sound,
    before_call,
    before_change,
    die,
    in_write,
    noting_samples,
    samples,
    together,
)

from src.models.classification import Classification

KINDS = {
    "plain": [],
    "accumulation and validation in mid-epoch": [
        *["--data.micro_batch_size", 16, "--trainer.limit_train_batches", 8],
        *["--trainer.val_check_interval", 4],
    ],
    "augmented, mixed, balanced": [
        "--data.augment",
        f"[{', '.join(f'src.data.augment.{name}' for name in ('Flip', 'Crop', 'Color', 'Erasing', 'RandAugment'))}]",
        *["--data.mix", "src.data.mix.CutMix", "--data.balance", "true", "--model.class_weights", "balanced"],
    ],
    "two workers": ["--data.num_workers", 2],
    "plateau": [
        *["--model.schedule", "torch.optim.lr_scheduler.ReduceLROnPlateau"],
        *["--model.schedule.patience", 0, "--model.schedule.threshold", 0.5],
    ],
    "average": ["--ema.decay", 0.9, "--trainer.val_check_interval", 2],
    "average, Muon, one cycle": [
        *["--model.network", "src.networks.cnn.CNN", "--model.network.widths", "[4,4]", "--model.network.hidden", 8],
        *["--model.network.batch_norm", "true", "--model.network.padding", 1, "--ema.decay", 0.9],
        *["--model.optimizer", "src.optim.muon.Muon", "--model.optimizer.adam_lr", 0.02],
        *["--model.schedule", "torch.optim.lr_scheduler.OneCycleLR", "--model.schedule.max_lr", 0.02],
    ],
}
SLOW = ("two workers", "plateau", "average, Muon, one cycle", "augmented, mixed, balanced")


def at_step(step):
    """A hook: die in the last micro-batch of an optimizer step."""

    def first():
        training_step = Classification.training_step

        def dying(self, batch, batch_idx):
            loss = training_step(self, batch, batch_idx)
            if self.trainer.global_step == step and not (batch_idx + 1) % self.trainer.accumulate_grad_batches:
                die()
            return loss

        Classification.training_step = dying

    return first


CASES = [
    pytest.param(kind, saving, marks=pytest.mark.long if kind in SLOW else ())
    for kind in KINDS
    for saving in ("every step", "seldom")
]


@pytest.mark.parametrize(("kind", "saving"), CASES)
def test_killed_at_each_step_in_turn(start, run, tmp_path, kind, saving):
    args = [*TINY, *KINDS[kind], *(EVERY_STEP if saving == "every step" else SELDOM)]
    run([*args, "--run_dir", tmp_path / "whole"], first=noting_samples(tmp_path / "whole.txt"))
    args, noting = [*args, "--run_dir", tmp_path / "killed"], noting_samples(tmp_path / "killed.txt")
    for step in range(STEPS):
        child = start(args, first=together(noting, at_step(step)))
        assert child.wait() == -9, child.output
        assert_sound(tmp_path / "killed")
    run(args, first=noting)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert samples(tmp_path / "killed.txt") == samples(tmp_path / "whole.txt")


@pytest.fixture
def whole(run, tmp_path):
    run([*TINY, *EVERY_STEP, "--run_dir", tmp_path / "whole"])
    return tmp_path / "whole"


def sweep(start, run, tmp_path, whole, hooks):
    """Kill a run once with each hook, each time where the life before it left off, then let it end."""
    args, killed = [*TINY, *EVERY_STEP, "--run_dir", tmp_path / "killed"], 0
    for hook in hooks:
        code = start(args, first=hook).wait()
        assert code in (-9, 0)
        killed += code == -9
        assert_sound(tmp_path / "killed")
    run(args)
    assert_same_end(tmp_path / "killed", whole)
    return killed


def test_killed_while_it_saves(start, run, tmp_path, whole):
    assert sweep(start, run, tmp_path, whole, [in_write(n) for n in (1, 40, 90, 140, 200)]) >= 3


def test_killed_before_any_change_to_files(start, run, tmp_path, whole):
    assert sweep(start, run, tmp_path, whole, [before_change(n) for n in range(1, 40, 3)]) >= 10


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_test_epoch_end", "configure_optimizers"])
def test_killed_in_validation_test_and_while_it_resumes(start, run, tmp_path, whole, hook):
    number = 3 if hook == "on_validation_epoch_end" else 1
    hooks = [before_call(Classification, hook, number), before_call(Classification, hook, 1)]
    assert sweep(start, run, tmp_path, whole, hooks) == 2


def test_early_stop_is_not_forgotten(start, run, tmp_path):
    stop = ["--trainer.callbacks", "[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: "]
    stop[1] += "{monitor: val/acc, mode: max, patience: 1, min_delta: 2.0}}]"
    args = [*TINY, *SELDOM, "--trainer.max_epochs", 9, *stop]
    run([*args, "--run_dir", tmp_path / "whole"])
    args += ["--run_dir", tmp_path / "killed"]
    assert start(args, first=before_call(Classification, "on_test_epoch_end", 1)).wait() == -9
    run(args)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def random_kills(start, run, tmp_path, whole, kills, seconds):
    args, rng = [*TINY, *EVERY_STEP, "--run_dir", tmp_path / "killed"], random.Random(0)
    cycles = []
    for _ in range(kills):
        child = start(args)
        time.sleep(rng.uniform(0, seconds))
        child.kill()
        assert child.wait() in (-9, 0)
        if (tmp_path / "killed/checkpoints").exists():
            assert_sound(tmp_path / "killed")
            cycles.append(len(list((tmp_path / "killed").rglob("*"))))
    run(args)
    assert_same_end(tmp_path / "killed", whole)
    assert max(cycles) <= 25  # what killed processes leave does not pile up


def test_killed_at_random_instants(start, run, tmp_path, whole):
    random_kills(start, run, tmp_path, whole, kills=8, seconds=1.5)


@pytest.mark.long
def test_killed_at_fifty_random_instants(start, run, tmp_path, whole):
    random_kills(start, run, tmp_path, whole, kills=50, seconds=1.5)
