"""How fast a few real steps are, on this machine."""

import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from src.callbacks.ema import EMA
from src.callbacks.gradients import Gradients

WARM, MOST_SEC = 4, 30.0  # steps that are slow, because memory is fetched and kernels are chosen; of all steps
clock = time.perf_counter


class Clock(Callback):
    """Takes the time of each optimizer step, and stops after so many, or after `MOST_SEC` seconds."""

    def __init__(self, steps: int) -> None:
        self.steps, self.ends = steps, [clock()]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step < len(self.ends):
            return  # in the midst of a step
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(clock())
        is_late = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > MOST_SEC
        trainer.should_stop = trainer.should_stop or is_late or trainer.global_step >= self.steps


def probe(experiment: Any, steps: int) -> tuple[float, int]:
    """The median seconds of a step of a built experiment, and how many were measured; nothing is written."""
    trainer, ends = experiment.trainer, Clock(WARM + steps)
    trainer.callbacks = [*(c for c in trainer.callbacks if isinstance(c, (Gradients, EMA))), ends]
    trainer.fit(experiment.model, datamodule=experiment.datamodule)
    each = [b - a for a, b in zip(ends.ends, ends.ends[1:], strict=False)]
    kept = each[WARM:] or each[-1:]
    return statistics.median(kept), len(kept)
