"""How fast a few real steps are, on this machine."""

import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from src.callbacks.ema import EMA
from src.callbacks.gradients import Gradients

WARM = 4  # steps that are slow: memory is fetched, kernels are chosen
MOST_SEC = 30.0


class Clock(Callback):
    """Takes the seconds of each optimizer step, and stops after so many, or after `MOST_SEC` seconds."""

    def __init__(self, steps: int) -> None:
        self.steps, self.ends = steps, [time.perf_counter()]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step < len(self.ends):
            return  # in the midst of a step
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        late = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > MOST_SEC
        trainer.should_stop = trainer.should_stop or late or trainer.global_step >= self.steps

    def seconds(self) -> list[float]:
        each = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return each[WARM:] if len(each) > WARM else each[-1:]


def probe(experiment: Any, steps: int) -> tuple[float, int]:
    """The median seconds of a step of a built experiment, and how many were measured; nothing is written."""
    trainer, clock = experiment.trainer, Clock(WARM + steps)
    trainer.callbacks = [c for c in trainer.callbacks if isinstance(c, (Gradients, EMA))] + [clock]
    trainer.fit(experiment.model, datamodule=experiment.datamodule)
    return statistics.median(clock.seconds()), len(clock.seconds())


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large matrix products here: what a step's speed is compared with where no data sheet tells the peak."""
    a, times = torch.randn(1024, 1024, device=device).to(dtype), []
    for _ in range(8):
        t0 = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - t0)
    return 2 * 1024**3 / min(times)
