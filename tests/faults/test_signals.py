import json
import os
import signal
import time

import pytest
from harness import SELDOM, TINY, assert_same_end, before_call, together

from src.models.classification import Classification
from src.run import checkpoint

SLOW = ["--trainer.max_epochs", 30]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on(start, run, tmp_path, trained_once, signum):
    folder = tmp_path / "run"
    args = [*TINY, *SELDOM, *SLOW, "--run_dir", folder]
    child = start(args, first=before_call(Classification, "training_step", 30, lambda: time.sleep(1)))
    child.wait_for(folder / "checkpoints/last.ckpt")
    child.kill(signum)
    assert child.wait() == 128 + signum, child.output
    assert "a checkpoint is written" in child.output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["exit_code"] == 128 + signum
    assert "going on after" in run(args)
    assert_same_end(folder, trained_once([*TINY, *SELDOM, *SLOW]))


def test_the_same_command_finds_the_run_that_was_cut_short(start, run, tmp_path):
    def logs_here():
        import src.run.folder

        src.run.folder.LOGS = tmp_path / "logs"

    def logs_here_and_die():
        logs_here()
        before_call(Classification, "training_step", 10)()

    args = [*TINY, *SELDOM, "--checkpoints.every_n_steps", 1]
    assert start(args, first=logs_here_and_die).wait() == -9
    free = ["--data.worker_timeout_sec", 60]  # the weights do not depend on it
    assert "going on after" in run([*args, *free], first=logs_here)
    assert len(list((tmp_path / "logs/tiny").iterdir())) == 1
    run(args, first=logs_here)  # finished: a new one
    assert len(list((tmp_path / "logs/tiny").iterdir())) == 2
    assert start(args, first=logs_here_and_die).wait() == -9
    run([*args, "--data.batch_size", 16], first=logs_here)  # another config: a new one
    assert len(list((tmp_path / "logs/tiny").iterdir())) == 4


def test_the_newest_run_is_the_one_begun_last_whatever_its_name(start, run, tmp_path):
    def logs_here():
        import src.run.folder

        src.run.folder.LOGS = tmp_path / "logs"

    logs = tmp_path / "logs/tiny"
    args = [*TINY, *SELDOM, "--checkpoints.every_n_steps", 1]
    run([*args, "--run_dir", logs / "zoo"], first=logs_here)  # it is finished, and hides nothing
    dying = together(logs_here, before_call(Classification, "training_step", 10))
    assert start(args, first=dying).wait() == -9
    assert "going on after" in run(args, first=logs_here)
    assert len(list(logs.iterdir())) == 2


def run_of(start, folder, *hooks, slow_step=30, pause=1):
    """A run that has come to its `slow_step`-th step, which takes `pause` seconds."""
    reached = folder.with_name("reached")
    slow = before_call(Classification, "training_step", slow_step, lambda: (reached.touch(), time.sleep(pause)))
    child = start([*TINY, *SELDOM, *SLOW, "--run_dir", folder], first=together(slow, *hooks))
    child.wait_for(reached)
    return child


def test_sigusr1_writes_a_checkpoint_and_the_run_goes_on(start, run, tmp_path, trained_once):
    child = run_of(start, tmp_path / "run")
    for _ in range(3):
        child.kill(signal.SIGUSR1)
    written = tmp_path / "run/checkpoints/step-00000030.ckpt"
    child.wait_for(written)
    assert child.wait() == 0, child.output
    assert_same_end(tmp_path / "run", trained_once([*TINY, *SELDOM, *SLOW]))


def test_sigusr1_at_any_instant_kills_nothing(start, tmp_path):
    child = start([*TINY, *SELDOM, *SLOW, "--run_dir", tmp_path / "run"])
    time.sleep(0.2)  # it has its handlers
    while not (tmp_path / "run/summary.json").exists():
        child.kill(signal.SIGUSR1)
        time.sleep(0.03)
    assert child.wait() == 0, child.output


SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
SLURM |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}


def under_slurm(folder, code, extra=()):
    """A hook: a SLURM job, with an scontrol that notes what it is asked."""
    scontrol = folder / "bin/scontrol"
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\necho no such job >&2\nexit {code}\n')
    scontrol.chmod(0o755)

    def first():
        os.environ.update({**SLURM, **dict(extra), "PATH": f"{scontrol.parent}:{os.environ['PATH']}"})

    return first


@pytest.mark.parametrize(
    ("extra", "job"), [({}, "4711"), ({"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3"}, "4700_3")]
)
def test_sigusr1_under_slurm_requeues_the_job(start, run, tmp_path, trained_once, extra, job):
    slurm = under_slurm(tmp_path, 0, extra)
    child = run_of(start, tmp_path / "run", slurm)
    child.kill(signal.SIGUSR1)
    assert child.wait() == 143, child.output
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    assert "SLURM has the job in its queue again; a checkpoint is written" in child.output
    assert checkpoint.read_manifest(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 30
    args = [*TINY, *SELDOM, *SLOW]
    assert "going on after 30 steps" in run([*args, "--run_dir", tmp_path / "run"], first=slurm)
    assert_same_end(tmp_path / "run", trained_once(args))


def test_where_slurm_cannot_requeue_the_run_goes_on(start, tmp_path):
    child = run_of(start, tmp_path / "run", under_slurm(tmp_path, 1))
    child.kill(signal.SIGUSR1)
    assert child.wait() == 0, child.output
    assert "scontrol could not requeue job 4711: no such job. Training goes on." in child.output


def test_a_signal_that_comes_twice_at_once_is_one(start, tmp_path):
    child = run_of(start, tmp_path / "run")
    child.kill(signal.SIGTERM)
    time.sleep(0.2)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143, child.output
    assert "after 30 steps stopped by SIGTERM; a checkpoint is written" in child.output


def test_a_second_signal_later_ends_the_run_at_once(start, tmp_path):
    child = run_of(start, tmp_path / "run", pause=60)
    child.kill(signal.SIGINT)
    time.sleep(2.2)
    t0 = time.monotonic()
    child.kill(signal.SIGINT)
    assert child.wait() == 130, child.output
    assert time.monotonic() - t0 < 20
    assert "ended at once by SIGINT -> same command again" in child.output


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_signal_while_training_ends_is_answered(start, tmp_path, call):
    """It comes just before each of the run's handlers is taken away."""

    def first():
        from src.run.signals import Signals

        restore, set_handler, calls = Signals.restore, signal.signal, [0]

        def setting(signum, handler):
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return set_handler(signum, handler)

        def restoring(self):
            signal.signal = setting
            try:
                restore(self)
            finally:
                signal.signal = set_handler

        Signals.restore = restoring

    child = start([*TINY, *SELDOM, "--run_dir", tmp_path / "run"], first=first)
    assert child.wait() == 143, child.output
    assert "error: " in child.output
    assert "Traceback" not in child.output


def test_sigterm_after_sigusr1_stops(start, tmp_path):
    child = run_of(start, tmp_path / "run")
    child.kill(signal.SIGUSR1)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143, child.output


PLATEAU = "{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {patience: 0}}"
VALIDATIONS = {
    "at the end of an epoch": (signal.SIGTERM, []),
    "amid an epoch": (
        signal.SIGINT,
        ["--trainer.limit_train_batches", 8, "--trainer.val_check_interval", 4, "--data.micro_batch_size", 16],
    ),
    "with averages": (signal.SIGTERM, ["--ema.decay", 0.9, "--trainer.val_check_interval", 1]),
    "with a plateau": (signal.SIGTERM, ["--model.schedule", PLATEAU]),
}


@pytest.mark.parametrize("name", VALIDATIONS)
def test_a_long_validation_does_not_hold_up_a_signal(start, run, tmp_path, name):
    signum, flags = VALIDATIONS[name]
    run([*TINY, *SELDOM, *flags, "--run_dir", tmp_path / "whole"])
    reached = tmp_path / "reached"

    def first():
        from src.run import signals

        signals.PATIENCE_SEC = 1
        step = Classification.validation_step

        def slow(self, batch, batch_idx):
            if self.trainer.global_step == 8:
                reached.touch()
                time.sleep(2.5)
            return step(self, batch, batch_idx)

        Classification.validation_step = slow

    args = [*TINY, *SELDOM, *flags, "--run_dir", tmp_path / "run"]
    written = tmp_path / "run/checkpoints/step-00000008-before-validation.ckpt"
    for again in range(2):  # a checkpoint never changes
        before = written.stat().st_ino if again else None
        reached.unlink(missing_ok=True)
        child = start([*args], first=first)
        child.wait_for(reached)
        child.kill(signum)
        assert child.wait() == 128 + signum, child.output
        assert "in the validation after 8 steps stopped by" in child.output
        assert "a checkpoint is written -> the same command goes on" in child.output
        assert before in (None, written.stat().st_ino)
    assert "going on after 8 steps" in run(args)
    assert_same_end(tmp_path / "run", tmp_path / "whole")
