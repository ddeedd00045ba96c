"""A worker that dies, hangs or raises ends the job soon, by name; nobody is left behind."""

import os
import signal
import time

import pytest
import torch
from harness import SELDOM, TINY, assert_same_end, before_call, together

from src.data.loader import Arrays
from src.models.classification import Classification

ARGS = [*TINY, *SELDOM, "--data.num_workers", 2]


def at_batch(act, number=2):
    """A hook: act in the worker that fetches its `number`-th batch."""

    def first():
        take, main, calls = Arrays.__getitem__, os.getpid(), [0]

        def acting(self, index):
            if os.getpid() != main:
                calls[0] += 1
                if calls[0] == number:
                    act()
            return take(self, index)

        Arrays.__getitem__ = acting

    return first


def children_of(pid):
    pids = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as f:
                state, parent = f.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            pids.append(int(entry))
    return pids


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_error():
    raise OSError("image 7 is truncated")


def no_memory():
    raise MemoryError


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (lambda: os._exit(3), 75, "ended with exit code 3"),
        (kill_self, 75, "was killed by SIGKILL"),
        (raise_error, 3, "OSError: image 7 is truncated"),
        (no_memory, 75, "out of memory"),
    ],
    ids=["exit", "SIGKILL", "OSError", "MemoryError"],
)
def test_ends_the_job_within_seconds_and_the_next_goes_on(run, tmp_path, trained_once, act, code, said):
    t0 = time.monotonic()
    output = run([*ARGS, "--run_dir", tmp_path / "run"], code=code, first=at_batch(act))
    assert time.monotonic() - t0 < 60  # bounded; how fast it is on a quiet machine stands in docs/reliability.md
    line = output.splitlines()[-1]
    assert line.startswith("error: data worker ")
    assert said in line
    assert "at samples " in line
    run([*ARGS, "--run_dir", tmp_path / "run"])
    assert_same_end(tmp_path / "run", trained_once(ARGS))


def test_names_the_samples_that_the_worker_was_at(run, tmp_path):
    file = tmp_path / "index"

    def first():
        take, main, calls = Arrays.__getitem__, os.getpid(), [0]

        def acting(self, index):
            calls[0] += os.getpid() != main
            if calls[0] == 2 and torch.utils.data.get_worker_info().id == 1:
                file.write_text(", ".join(map(str, index[:5].tolist())))
                os._exit(1)
            return take(self, index)

        Arrays.__getitem__ = acting

    line = run([*ARGS, "--run_dir", tmp_path / "run"], code=75, first=first).splitlines()[-1]
    assert "data worker 1 " in line
    assert f"last at samples {file.read_text()}, ..." in line


def test_a_hung_worker_is_given_up_and_leaves_with_the_run(start, tmp_path):
    args = [*ARGS, "--data.worker_timeout_sec", 1.5, "--run_dir", tmp_path / "run"]
    child = start(args, first=at_batch(lambda: time.sleep(1000)))
    workers = until(lambda: len(found := children_of(child.pid)) == 2 and found)
    assert child.wait(30) == 75, child.output
    line = child.output.splitlines()[-1]
    assert "gave nothing for 1.5 s, last at samples " in line
    assert "data.worker_timeout_sec" in line
    until(lambda: not any(map(alive, workers)), 2)


@pytest.mark.parametrize("hook", [None, at_batch(lambda: time.sleep(1000), 4)], ids=["working", "hung"])
def test_a_killed_run_leaves_no_workers(start, tmp_path, hook):
    child = start([*ARGS, "--trainer.max_epochs", 1000, "--run_dir", tmp_path / "run"], first=hook)
    workers = until(lambda: len(found := children_of(child.pid)) == 2 and found)
    time.sleep(0.5)
    child.kill()
    assert child.wait() == -9
    until(lambda: not any(map(alive, workers)), 2)


def test_without_workers_an_error_names_its_samples_too(run, tmp_path):
    def first():
        take, calls = Arrays.__getitem__, [0]

        def failing(self, index):
            calls[0] += 1
            if calls[0] == 9:
                raise OSError("image 7 is truncated")
            return take(self, index)

        Arrays.__getitem__ = failing

    line = run([*TINY, "--run_dir", tmp_path / "run"], code=3, first=first).splitlines()[-1]
    assert "the data failed, last at samples " in line
    assert "OSError: image 7 is truncated" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_the_whole_group_writes_a_checkpoint(start, run, tmp_path, workers):
    args = [*TINY, *SELDOM, "--data.num_workers", workers]
    reached = tmp_path / "reached"
    slow = before_call(Classification, "training_step", 6, lambda: (reached.touch(), time.sleep(1)))
    child = start([*args, "--run_dir", tmp_path / "run"], first=slow)
    child.wait_for(reached)
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait() == 143, child.output
    assert "after 6 steps stopped by SIGTERM; a checkpoint is written" in child.output
    run([*args, "--run_dir", tmp_path / "run"])
    run([*args, "--run_dir", tmp_path / "whole"])
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def soon():
    from src.run import signals

    signals.PATIENCE_SEC = 1.0


@pytest.mark.parametrize(
    ("micro", "batch"), [(32, 4), (8, 12), (8, 15)], ids=["boundary", "boundary of 4", "in a step"]
)
def test_a_signal_while_a_worker_gives_nothing_is_answered(start, run, tmp_path, micro, batch):
    """Batch 4 of 32 begins a step, so does batch 13 of 8 (the fourth step's first), but not batch 16."""
    args = [*TINY, *SELDOM, "--checkpoints.every_n_steps", 1, "--data.num_workers", 1, "--data.micro_batch_size", micro]
    args += ["--trainer.limit_train_batches", 8 * 32 // micro]
    reached = tmp_path / "reached"
    asleep = at_batch(lambda: (reached.touch(), time.sleep(1000)), batch + 1)
    child = start([*args, "--run_dir", tmp_path / "run"], first=together(soon, asleep))
    child.wait_for(reached)
    time.sleep(0.5)
    t0 = time.monotonic()
    child.kill(signal.SIGTERM)
    assert child.wait() == 143, child.output
    assert time.monotonic() - t0 < 20
    steps = batch * micro // 32
    written = "; a checkpoint is written -> the same command goes on"
    lost = " -> the same command goes on from the last checkpoint, if there is one"
    assert f"after {steps} steps stopped by SIGTERM{lost if batch == 15 else written}" in child.output
    assert f"going on after {steps} steps" in run([*args, "--run_dir", tmp_path / "run"])
    run([*args, "--run_dir", tmp_path / "whole"])
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_long_step_does_not_hold_up_a_signal(start, run, tmp_path):
    args = [*TINY, *SELDOM, "--checkpoints.every_n_steps", 1, "--data.micro_batch_size", 4]
    args += ["--trainer.limit_train_batches", 32]
    reached = tmp_path / "reached"
    slow = before_call(Classification, "training_step", 19, lambda: (reached.touch(), time.sleep(1.5)))
    child = start([*args, "--run_dir", tmp_path / "run"], first=together(soon, slow))
    child.wait_for(reached)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143, child.output
    assert "in the step after 2 steps stopped by SIGTERM -> the same command goes on from the last" in child.output
    assert "going on after 2 steps" in run([*args, "--run_dir", tmp_path / "run"])
    run([*args, "--run_dir", tmp_path / "whole"])
    assert_same_end(tmp_path / "run", tmp_path / "whole")
