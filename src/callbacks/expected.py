"""What a run is expected to take, from the objects of the run themselves."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from src.callbacks.ema import EMA
from src.callbacks.gradients import Gradients
from src.cost.memory import Step, Usage, enlarged, measure
from src.models.base import Model
from src.run.errors import KnownError


def expected(trainer: Trainer, model: Model, device: str) -> Usage:
    """What one device takes in an optimizer step. The model is on the meta device, and of no use afterwards.

    Args:
        device: `cpu`, `cuda`, ...: whose kernels are meant.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    steps = trainer.estimated_stepping_batches  # the optimizer's schedule asks for it; no loader can be made below
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    step = Step(
        forward=trainer.precision_plugin.train_step_context,
        micro_batches=trainer.accumulate_grad_batches,
        clip=bool(trainer.gradient_clip_val),
        measured=0 < every <= steps and any(isinstance(callback, Gradients) for callback in callbacks),
        averaged=any(isinstance(callback, EMA) and callback.decay is not None for callback in callbacks),
        device=device,
    )

    def optimizer() -> Optimizer:
        return next(part for part in tree_leaves(model.configure_optimizers()) if isinstance(part, Optimizer))

    fetched = data.splits["train"][torch.arange(2)]
    batch = enlarged(data.on_after_batch_transfer(fetched, 0), data.micro_batch_size)
    waiting = enlarged(fetched, data.micro_batch_size) if device == "cpu" else {}  # the next one, which is fetched early
    try:
        return measure(model, optimizer, batch, step, waiting)
    except KnownError:
        raise
    except Exception as e:  # what code does that cannot run without numbers has no common base
        return Usage(unknown=f"{type(e).__name__}: {' '.join(str(e).split())[:150]}")
