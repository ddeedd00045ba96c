"""Where a loss or gradient that is not finite came from: its batch is run again, and watched."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from src.data.module import Batch

Found = tuple[str, list[int], str]  # where, the samples if they can be told, and what to do

HINT = "lower the learning rate, set trainer.gradient_clip_val, or set gradients.nonfinite to skip"


def report(trainer: Trainer, step: int, micro_batches: list[tuple[int, int]], limit: int) -> str:
    """One line: the step, its samples, and where the first value that is not finite came from.

    Args:
        micro_batches: epoch and number of each.
        limit: so many bad steps in a row were allowed.
    """
    samples, found = [], None
    try:
        for epoch, number in micro_batches:
            batch = trainer.datamodule.fetch(epoch, number)  # type: ignore[attr-defined]
            samples += batch["index"].tolist()
            found = found or first_nonfinite(trainer, batch, number)
    except Exception as e:  # whatever it is, the first error is the one to tell
        found = (f"not found: to run the batch again failed ({type(e).__name__})", [], HINT)
    if trainer.world_size > 1:  # it may have happened on another device
        everywhere: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, (found, samples))
        found, samples = next((both for both in everywhere if both[0]), everywhere[0])
    where, rows, hint = found or ("not found: the batch, run again, gives finite numbers", [], HINT)
    named = rows or samples
    shown = ", ".join(map(str, named[:5])) + (", ..." if len(named) > 5 else "")
    row = f", the first of {limit + 1} in a row" if limit else ""
    return f"step {step}{row}: loss or gradient is not finite; samples {shown} of train; first in {where} -> {hint}"


def first_nonfinite(trainer: Trainer, batch: Batch, number: int) -> Found | None:
    """The first value of a training step with this batch that is not finite."""
    model, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    batch = data.on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), 0)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    search = Search(batch["index"])
    search.note("the input x", batch["x"], "clean these samples")
    hooks = [m.register_forward_hook(partial(search.watch, name)) for name, m in model.named_modules() if name]
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    try:
        with torch.enable_grad(), trainer.precision_plugin.train_step_context():
            loss: Any = model.training_step(batch, number)
            search.note("the loss", loss, "look at their targets, or set gradients.nonfinite to skip")
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for name, grad in reversed([*zip(params, grads, strict=True)]):
        search.note(f"the gradient of {name}", grad)
    return search.found


class Search:
    """Notes the first of the values it is shown that is not finite; `index` [N] is of the batch's samples."""

    def __init__(self, index: Tensor) -> None:
        self.index = index
        self.found: Found | None = None

    def note(self, where: str, value: Any, hint: str = HINT) -> None:
        if self.found or not isinstance(value, Tensor) or value.isfinite().all():
            return
        bad = torch.zeros_like(self.index, dtype=torch.bool)
        if value.ndim and len(value) == len(self.index):  # a row for each sample
            bad = ~value.isfinite().reshape(len(value), -1).all(1)
        self.found = where, [] if bad.all() else self.index[bad].tolist(), hint

    def watch(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook."""
        for value in output if isinstance(output, tuple) else (output,):
            self.note(f"the output of {name} ({type(module).__name__})", value)
