import json
import signal
import time

import pytest
from harness import SELDOM, TINY, assert_same_end, before_call

from src.models.classification import Classification

SLOW = ["--trainer.max_epochs", 30]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on(start, run, tmp_path, signum):
    run([*TINY, *SELDOM, *SLOW, "--run_dir", tmp_path / "whole"])
    folder = tmp_path / "run"
    args = [*TINY, *SELDOM, *SLOW, "--run_dir", folder]
    child = start(args, first=before_call(Classification, "training_step", 30, lambda: time.sleep(1)))
    while not (folder / "checkpoints/last.ckpt").exists():
        time.sleep(0.01)
    child.kill(signum)
    assert child.wait() == 128 + signum, child.output
    assert "a checkpoint is written" in child.output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["exit_code"] == 128 + signum
    assert "going on after" in run(args)
    assert_same_end(folder, tmp_path / "whole")


def test_the_same_command_finds_the_run_that_was_cut_short(start, run, tmp_path):
    def logs_here():
        import src.run

        src.run.LOGS = tmp_path / "logs"

    def logs_here_and_die():
        logs_here()
        before_call(Classification, "training_step", 10)()

    args = [*TINY, *SELDOM, "--checkpoints.every_n_steps", 1]
    assert start(args, first=logs_here_and_die).wait() == -9
    assert "going on after" in run(args, first=logs_here)
    assert len(list((tmp_path / "logs/tiny").iterdir())) == 1
    run(args, first=logs_here)  # finished: a new one
    assert len(list((tmp_path / "logs/tiny").iterdir())) == 2
    assert start(args, first=logs_here_and_die).wait() == -9
    run([*args, "--data.batch_size", 16], first=logs_here)  # another config: a new one
    assert len(list((tmp_path / "logs/tiny").iterdir())) == 4
