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


def expected(trainer: Trainer, model: Model, device: str = "", micro_batches: int = 0) -> Usage:
    """What one device takes in an optimizer step, by running it without numbers; takes a second or so.

    Args:
        device: `cpu`, `cuda`, ...: whose kernels are meant; by default those of the trainer's.
        micro_batches: so many make a step; by default the trainer's.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    steps = trainer.estimated_stepping_batches  # the optimizer's schedule asks for it; no loader can be made below
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    device = device or trainer.strategy.root_device.type
    step = Step(
        forward=trainer.precision_plugin.train_step_context,
        micro_batches=micro_batches or trainer.accumulate_grad_batches,
        clip=bool(trainer.gradient_clip_val),
        measured=0 < every <= steps and any(isinstance(callback, Gradients) for callback in callbacks),
        averaged=any(isinstance(callback, EMA) and callback.decay is not None for callback in callbacks),
        device=device,
    )

    def optimizer(model: Model) -> Optimizer:
        return next(part for part in tree_leaves(model.configure_optimizers()) if isinstance(part, Optimizer))

    warm(model.optimizer)
    fetched = data.splits["train"][torch.arange(2)]
    batch = enlarged(data.on_after_batch_transfer(fetched, 0), data.micro_batch_size)
    waiting = enlarged(fetched, data.micro_batch_size) if device == "cpu" else {}  # the next one is fetched early
    try:
        return measure(model, optimizer, with_facts(batch, data.facts), waiting, step)
    except KnownError:
        raise
    except Exception as e:  # what code does that cannot run without numbers has no common base
        return Usage(unknown=f"{type(e).__name__}: {' '.join(str(e).split())[:150]}")


def warm(optimizer: Any) -> None:
    """Have torchao make what it looks up, which it makes once, of real numbers."""
    if getattr(optimizer, "func", optimizer).__module__.startswith("torchao."):
        p = torch.nn.Parameter(torch.zeros(4096))
        p.grad = torch.zeros_like(p)
        with torch.compiler.set_stance("force_eager"):
            optimizer([p]).step()


def with_facts(batch: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The batch in the sizes that the facts tell, where somebody has set them to others than the data's."""
    x = batch["x"]
    if x.ndim == 4 and "image_size" in facts and "in_channels" in facts:
        return {**batch, "x": x.new_empty(len(x), facts["in_channels"], *facts["image_size"])}
    if x.ndim == 2 and facts.get("seq_len", x.shape[1]) != x.shape[1]:
        sizes = (len(x), facts["seq_len"])
        return {**batch, "x": x.new_empty(sizes), "targets": batch["targets"].new_empty(sizes)}
    return batch
