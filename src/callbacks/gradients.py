import math
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from src.data.module import Batch
from src.models.base import logs_now
from src.run.errors import ConfigError, NumericsError
from src.run.private import any_nonfinite, skip_on_device
from src.strategies.fsdp import local

Found = tuple[str, list[int], str]  # where, the samples if they can be told, and what to do

HINT = "lower the learning rate, set trainer.gradient_clip_val, or set gradients.nonfinite to skip"


class Gradients(Callback):
    """Keeps a loss or gradient that is not finite from weights and optimizer, and logs the size of updates.

    Logged every `log_every_n_steps`: `optim/grad_norm`, before clipping; `optim/update_ratio`, the norm of the last
    update over that of the weights, which are copied for it; and `optim/skipped`, the steps left out so far.

    A step is left out whole: all its micro-batches, on all devices, and what they did to statistics of batch norms.
    On a CPU, and at the very first step, the host looks, and an optimizer finds no gradients. On a GPU the host looks
    only when the log is written and before a checkpoint: until then a fused optimizer leaves the step out by itself;
    another gets a gradient of zeros, with which momentum and weight decay still move the weights. float16 has its own
    rule, the loss scaler's.

    Args:
        nonfinite: stop the run at a loss or gradient that is not finite, with exit code 5 and without the update; or
            skip the step.
        max_skips: so many such steps in a row are skipped, one more stops the run.
    """

    def __init__(self, nonfinite: Literal["stop", "skip"] = "stop", max_skips: int = 10) -> None:
        if max_skips < 1:
            raise ConfigError(f"gradients.max_skips: {max_skips} is less than 1")
        self.skips = nonfinite == "skip"
        self.limit = max_skips if self.skips else 0
        # On the device: the first step of the present row of bad ones, their number, the longest row, all left out.
        self.counts = torch.tensor([-1, 0, 0, 0])
        self.taken: dict[int, list[tuple[int, int]]] = {}  # step -> epoch and number of its micro-batches
        self.begun: list[tuple[int, int]] = []  # those of the step that runs
        self.loss: Tensor | float = 0.0
        self.norm: Tensor | None = None
        self.measured: list[tuple[Any, Tensor]] = []  # parameters of a step whose update is measured, and copies
        self.buffers: list[Tensor] = []  # such as the statistics of batch norms, which the forward pass changes
        self.buffers_before: list[Tensor] = []
        self.on_host = True  # whether looking at a number costs nothing

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts.cpu(), "taken": dict(self.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.taken = state["counts"], dict(state["taken"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = next(pl_module.parameters()).device  # of weights, which may be offloaded
        self.on_host = device.type == "cpu"
        self.counts = self.counts.to(device)
        self.buffers = list(pl_module.buffers()) if self.skips else []
        self.buffers_before = [buffer.clone() for buffer in self.buffers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.begun.append((trainer.current_epoch, batch_idx))
        if self.buffers and batch_idx % trainer.accumulate_grad_batches == 0:
            torch._foreach_copy_(self.buffers_before, self.buffers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.loss = self.loss + loss.detach()  # a share of the step's loss: Lightning has divided it

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss, self.loss = torch.as_tensor(self.loss), 0.0
        step = trainer.global_step
        self.taken[step], self.begun = self.begun, []
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (step + 1) % every == 0:
            # A fused optimizer gets the gradient as the loss scaler has scaled it.
            self.norm = None if scaled and is_fused(optimizer) else norm([p.grad for p in params])
            self.measured = [(p, p.detach().clone()) for p in params]
        if not scaled:
            self.guard(trainer, optimizer, params, loss)

    def guard(self, trainer: Trainer, optimizer: Optimizer, params: list[Any], loss: Tensor) -> None:
        """Leave the step out if its loss or gradient is not finite."""
        bad, alone = any_nonfinite([local(p.grad) for p in params]), len(self.taken) == 1  # not one of a row
        if self.on_host and trainer.world_size == 1 and alone and not bad and math.isfinite(loss):
            self.taken.clear()  # nearly always; below nothing waits for the device
            return
        bad += ~loss.to(bad.device).isfinite()
        if trainer.world_size > 1:  # all must decide alike; the gradient is everyone's already, the loss is not
            torch.distributed.all_reduce(bad)
        skip = self.count(bad > 0, trainer.global_step)
        for buffer, before in zip(self.buffers, self.buffers_before, strict=True):
            buffer.copy_(torch.where(skip, before, buffer))
        # The first step makes the state of an optimizer; plain SGD has none, ever.
        makes_state = not optimizer.state and any(group.get("momentum", 1) for group in optimizer.param_groups)
        if self.on_host or makes_state:
            if skip:
                for p in params:
                    p.grad = None
            self.look(trainer)
        elif is_fused(optimizer):
            skip_on_device(optimizer, skip)
        else:
            for p in params:
                local(p.grad).masked_fill_(skip, 0)

    def count(self, bad: Tensor, step: int) -> Tensor:
        """Whether to leave out the step; nothing here waits for the device."""
        first, row, longest, skipped = self.counts.unbind()
        row = torch.where(bad, row + 1, 0)
        skip = bad | (longest > self.limit)  # once too many, the weights stay as they are until the host looks
        first = torch.where(bad & (row == 1) & (longest <= self.limit), step, first)
        self.counts = torch.stack([first, row, longest.maximum(row), skipped + skip])
        return skip

    def look(self, trainer: Trainer) -> None:
        first, row, longest, _ = self.counts.tolist()
        if longest > self.limit:
            raise NumericsError(report(trainer, first, self.taken.get(first, []), self.limit))
        self.taken = {step: micro_batches for step, micro_batches in self.taken.items() if row and step >= first}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if logs_now(trainer, batch_idx):
            self.log_updates(trainer, pl_module)

    @torch.no_grad()
    def log_updates(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer)
        if self.norm is not None:
            pl_module.log("optim/grad_norm", self.norm)
        if self.measured:
            weights, copies = ([*side] for side in zip(*self.measured, strict=True))
            before = norm(copies)
            torch._foreach_sub_(copies, weights)  # in the copies' memory: a third set of weights may be one too many
            pl_module.log("optim/update_ratio", norm(copies) / before)
        if self.skips:
            pl_module.log("optim/skipped", self.counts[3].float())
        self.norm, self.measured = None, []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.look(trainer)  # what follows a bad step is never saved


def norm(tensors: list[Tensor]) -> Tensor:
    """Of all of them together, whole also where they are divided."""
    total = get_total_norm(tensors)
    return total.full_tensor() if isinstance(total, DTensor) else total


def is_fused(optimizer: Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)


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
            here = first_nonfinite(trainer, batch, number)  # by all devices: a divided network needs them all
            found = found or here
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
    if hint == HINT and "bf16" in str(trainer.precision) and trainer.strategy.root_device.type == "cpu":
        hint += ", or try --trainer.precision 32-true: torch's kernels for bfloat16 on CPUs err at some shapes"
    return f"step {step}{row}: loss or gradient is not finite; samples {shown} of train; first in {where} -> {hint}"


def first_nonfinite(trainer: Trainer, batch: Batch, number: int) -> Found | None:
    """The first value of a training step with this batch that is not finite."""
    model, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    batch = data.on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), 0)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    search = Search(batch["index"])
    search.note("the input x", batch["x"], "clean these samples")
    hooks = [m.register_forward_hook(partial(search.watch, name)) for name, m in model.named_modules() if name]
    # The forward pass of a divided network has other tensors than these, so its gradients cannot be looked at.
    params = {n: p for n, p in model.named_parameters() if p.requires_grad and not isinstance(p, DTensor)}
    try:
        # Compiled code calls no hooks that come after it.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.enable_grad(), trainer.precision_plugin.train_step_context():
            loss: Any = model.training_step(batch, number)
            search.note("the loss", loss, "look at their targets, or set gradients.nonfinite to skip")
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True) if params else ()
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

    @torch.no_grad()  # so that a block whose activations are made anew has as many of them as before
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
