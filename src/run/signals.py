"""Signals that ask a run to save, or to save and stop: noted when they come, answered between two steps."""

import os
import signal
import subprocess
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from src.run.command import handle
from src.run.private import cluster_environment
from src.run.terminal import rank_zero_print

TOGETHER_SEC = 2.0  # one request may come twice: to the process and to its group
PATIENCE_SEC = 15.0  # a step or validation that goes on so long after a signal is cut short


class Signals:
    def __init__(self) -> None:
        self.stop, self.since, self.save = 0, 0.0, False
        self.save_signal: int = signal.SIGUSR1
        self.requeues = False
        self.handlers: dict[int, Any] = {}

    def watch(self, trainer: Trainer) -> None:
        slurm = cluster_environment(trainer)
        self.requeues = isinstance(slurm, SLURMEnvironment) and slurm.auto_requeue
        self.save_signal = getattr(slurm, "requeue_signal", signal.SIGUSR1)
        # Lightning would end the run on SIGTERM without a checkpoint, on SIGINT with exit code 1, and save for SLURM in
        # the middle of a step.
        self.handlers = handle(dict.fromkeys((signal.SIGINT, signal.SIGTERM, self.save_signal), self.note))

    def note(self, signum: int, frame: Any) -> None:
        if signum == self.save_signal:
            self.save = True
        elif not self.stop:
            self.stop, self.since = signum, time.monotonic()
        elif time.monotonic() - self.since > TOGETHER_SEC:  # a second one is in a hurry
            self.handlers[signum](signum, frame)

    @property
    def asked(self) -> int:
        return self.stop or (self.save_signal if self.save else 0)

    @property
    def overdue(self) -> bool:
        return bool(self.stop) and time.monotonic() - self.since > PATIENCE_SEC

    def restore(self) -> None:
        handle(self.handlers)


def requeued() -> bool:
    """Whether SLURM took the job back into its queue."""
    job, array = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    try:
        subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        why = (getattr(e, "stderr", None) or str(e)).strip()
        rank_zero_print(f"A checkpoint is written, but scontrol could not requeue job {job}: {why}. Training goes on.")
        return False
    return True
