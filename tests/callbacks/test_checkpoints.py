"""`data.batch_size` is a contract: no step takes a part of its micro-batches."""

import pytest
from conftest import SMALL

HALVED = [*SMALL, "--data.batch_size", 64, "--data.micro_batch_size", 32]  # 40 micro-batches, 20 steps


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["limit_train_batches", 1], "limit_train_batches: it comes to 1 micro-batches, but a step has 2 -> take 2"),
        (["limit_train_batches", 5], "5 micro-batches, but a step has 2 -> take 4 or 6"),
        (["limit_train_batches", 0.33], "13 micro-batches, but a step has 2 -> take 12 or 14"),
        (["overfit_batches", 3], "overfit_batches: it comes to 3 micro-batches, but a step has 2 -> take 2 or 4"),
        (["overfit_batches", 0.33], "overfit_batches: it comes to 13 micro-batches, but a step has 2 -> take 12 or 14"),
        (["val_check_interval", 5], "val_check_interval: it comes to 5 micro-batches, but a step has 2 -> take 4 or 6"),
        (["val_check_interval", 0.4, "limit_train_batches", 8], "val_check_interval: it comes to 3 micro-batches"),
        (["val_check_interval", 50], "trainer: `val_check_interval` (50) must be less than or equal to the number of"),
        (["overfit_batches", 0.01], "trainer: You requested to check 0.01 of the `train_dataloader`"),
        (["val_check_interval", "00:00:00:01"], "val_check_interval: a time may come within a step"),
    ],
    ids=str,
)
def test_what_is_no_whole_number_of_steps_is_refused(run, tmp_path, flags, said):
    keys = [f"--trainer.{flag}" if isinstance(flag, str) and "_" in flag else flag for flag in flags]
    output = run([*HALVED, *keys, "--run_dir", tmp_path / "run"], code=2)
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert said in line
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.limit_train_batches", 4, "--trainer.val_check_interval", 2],
        ["--trainer.limit_train_batches", 0.1],
        ["--trainer.overfit_batches", 4],
    ],
)
def test_whole_steps_are_trained(run, tmp_path, flags):
    run([*HALVED, *flags, "--trainer.max_epochs", 1, "--run_dir", tmp_path / "run"])
    assert (tmp_path / "run/checkpoints/step-00000002.ckpt").exists()
