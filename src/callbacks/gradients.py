"""What the optimizer gets: measured every few steps, and kept from the weights where it is not finite."""

import math
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

WINDOW, LEAST, SIGMAS = 128, 64, 6  # of the rule for spikes


class Gradients(Callback):
    """Keeps a loss or gradient that is not finite from weights and optimizer, and logs the size of updates.

    Logged every `log_every_n_steps`: `optim/grad_norm`, of the whole gradient before clipping; `optim/update_ratio`,
    the norm of the last update over that of the weights, for which they are copied at these steps; and
    `optim/skipped`, the steps left out so far.

    A step is left out whole: all its micro-batches, on all devices, and what they did to statistics of batch norms.
    On a CPU, and at the very first step, the host looks, and an optimizer finds no gradients. On a GPU nothing waits:
    the host looks when the log is written and before a checkpoint. Until then a fused optimizer leaves the step out by
    itself, as exactly; one that is not fused gets a gradient of zeros, with which momentum and weight decay still move
    the weights. float16 leaves out steps by its own rule, the loss scaler's, and is left alone.

    Args:
        nonfinite: stop the run at a loss or gradient that is not finite, with exit code 5 and without the update; or
            skip the step.
        max_skips: so many such steps in a row are skipped, one more stops the run.
        spikes: whether to skip a step whose loss or gradient norm lies more than 6 standard deviations above the mean
            of the last 128 steps, if there are 64 (the rule of OLMo-core). By default it is kept: a large step may be
            what the data asks for, so leaving it out is for you to decide.
    """

    def __init__(
        self,
        nonfinite: Literal["stop", "skip"] = "stop",
        max_skips: int = 10,
        spikes: Literal["keep", "skip"] = "keep",
    ) -> None:
        if max_skips < 1:
            raise ConfigError(f"gradients.max_skips: {max_skips} is less than 1")
        self.limit = max_skips if nonfinite == "skip" else 0
        self.skips, self.watches_spikes = "skip" in (nonfinite, spikes), spikes == "skip"
        # On the device: the first step of the present row of bad ones, their number, the longest row, all left out.
        self.counts = torch.tensor([-1, 0, 0, 0])
        self.history = torch.full((WINDOW if self.watches_spikes else 0, 2), math.nan)  # loss and gradient norm
        self.taken: dict[int, list[tuple[int, int]]] = {}  # step -> epoch and number of its micro-batches
        self.loss: Tensor | float = 0.0
        self.norm: Tensor | None = None
        self.before: list[Tensor] = []
        self.buffers: list[Tensor] = []  # such as the statistics of batch norms, which the forward pass changes
        self.buffers_before: list[Tensor] = []
        self.on_host = True  # whether looking at a number costs nothing

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts.cpu(), "history": self.history.cpu(), "taken": dict(self.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.taken = state["counts"], dict(state["taken"])
        if self.watches_spikes and len(state["history"]):
            self.history = state["history"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_host = pl_module.device.type == "cpu"
        self.counts, self.history = self.counts.to(pl_module.device), self.history.to(pl_module.device)
        self.buffers = list(pl_module.buffers()) if self.skips else []
        self.buffers_before = [buffer.clone() for buffer in self.buffers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self.buffers and batch_idx % trainer.accumulate_grad_batches == 0:
            torch._foreach_copy_(self.buffers_before, self.buffers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.loss = self.loss + loss.detach()  # a share of the step's loss: Lightning has divided it
        place = (trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx)
        self.taken.setdefault(trainer.global_step, []).append(place)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads, loss, self.loss = [p.grad for p in params], torch.as_tensor(self.loss), 0.0
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = every and (trainer.global_step + 1) % every == 0
        alone = self.on_host and trainer.world_size == 1 and not self.watches_spikes and len(self.taken) < 2
        if alone and not logs and math.isfinite(loss) and not nonfinite(grads):  # nearly always
            self.taken.clear()
            return
        self.norm = total_norm(grads) if logs or self.watches_spikes else None
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            self.guard(trainer, optimizer, params, loss)
        elif is_fused(optimizer):
            self.norm = None  # of a gradient that is still scaled
        if logs:
            self.before = [p.detach().clone() for p in params]
            self.params = params

    def guard(self, trainer: Trainer, optimizer: Optimizer, params: list[Any], loss: Tensor) -> None:
        # A first step makes the state, if there is to be any: of plain SGD there is none, ever.
        stateless = not optimizer.state and any(group.get("momentum", 1) for group in optimizer.param_groups)
        host_looks = self.on_host or stateless
        bad = nonfinite([p.grad for p in params])
        loss = loss.to(bad.device).float()
        seen = torch.stack([loss, bad if self.norm is None else self.norm.float(), bad])
        if trainer.world_size > 1:  # all must decide alike; the gradient is everyone's already, the loss is not
            torch.distributed.all_reduce(seen)
            seen /= trainer.world_size
        skip = self.judge(seen, trainer.global_step)
        for buffer, before in zip(self.buffers, self.buffers_before, strict=True):
            buffer.copy_(torch.where(skip, before, buffer))
        if host_looks:
            if skip:
                for p in params:
                    p.grad = None
            self.look(trainer)
        elif is_fused(optimizer) and not any(isinstance(p, DTensor) for p in params):
            optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as torch's loss scaler tells it
        else:
            for p in params:
                (p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad).masked_fill_(skip, 0)

    def judge(self, seen: Tensor, step: int) -> Tensor:
        """Whether to leave out the step with this loss, norm and sign of bad gradients [3]; nothing here waits for the
        device. Finite gradients pass also where their norm overflows."""
        bad, seen = ~seen[0].isfinite() | (seen[2] > 0), seen[:2]
        first, row, longest, skipped = self.counts.unbind()
        row = torch.where(bad, row + 1, 0)
        skip = bad | (longest > self.limit)  # once too many, the weights stay as they are until the host looks
        if self.watches_spikes:
            skip = skip | self.is_spike(seen)
            self.history[step % WINDOW] = torch.where(seen.isfinite().all() & ~bad, seen, math.nan)
        first = torch.where(bad & (row == 1) & (longest <= self.limit), step, first)
        self.counts = torch.stack([first, row, longest.maximum(row), skipped + skip])
        return skip

    def is_spike(self, seen: Tensor) -> Tensor:
        enough = (~self.history[:, 0].isnan()).sum() >= LEAST
        mean = self.history.nanmean(0)
        std = (self.history - mean).square().nanmean(0).sqrt()
        return enough & (seen > mean + SIGMAS * std).any()

    def look(self, trainer: Trainer) -> None:
        """Raise NumericsError if there were too many bad steps in a row."""
        first, row, longest, _ = self.counts.tolist()
        if longest > self.limit:
            raise NumericsError(report(trainer, first, self.taken.get(first, []), self.limit))
        self.taken = {step: places for step, places in self.taken.items() if row and step >= first}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not logs_now(trainer, batch_idx):
            return
        self.look(trainer)
        if self.norm is not None:
            pl_module.log("optim/grad_norm", self.norm)
        if self.before:
            after = [p.detach() for p in self.params]
            update = list(torch._foreach_sub(after, self.before))
            pl_module.log("optim/update_ratio", total_norm(update) / total_norm(self.before))
            self.before, self.params = [], []
        if self.skips:
            pl_module.log("optim/skipped", self.counts[3].float())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.look(trainer)  # what follows a bad step is never saved


def is_fused(optimizer: Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)


def nonfinite(grads: list[Any]) -> Tensor:
    """1 if there is NaN or infinity, else 0. As torch's loss scaler looks, at a scale of 1: on a CPU it takes a fifth
    of the time of a norm."""
    if len({grad.dtype for grad in grads}) != 1 or isinstance(grads[0], DTensor):
        return (~total_norm(grads).isfinite()).float()
    found = torch.zeros((), device=grads[0].device)
    torch._amp_foreach_non_finite_check_and_unscale_(grads, found, torch.ones_like(found))
    return found


def total_norm(tensors: list[Any]) -> Tensor:
    norm = get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # of weights in shards


def report(trainer: Trainer, step: int, places: list[tuple[int, int]], limit: int) -> str:
    """One line: the step, its samples, and where the first value that is not finite came from."""
    samples, found = [], None
    try:
        for place in places:
            batch = trainer.datamodule.fetch(*place)  # type: ignore[attr-defined]
            samples += batch["index"].tolist()
            found = found or first_nonfinite(trainer, batch, place[1])
    except Exception as e:  # whatever it is, the first error is the one to tell
        found = (f"not found: to run the batch again failed ({type(e).__name__})", None, HINTS["gradient"])
    if trainer.world_size > 1:  # it may have happened on another device
        everywhere: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, (found, samples))
        found, samples = next((both for both in everywhere if both[0]), everywhere[0])
    where, rows, hint = found or ("not found: the batch, run again, gives finite numbers", None, HINTS["gradient"])
    if step == 0 and hint == HINTS["gradient"]:  # no rate has had a part in it
        hint = HINTS["first"]
    named = rows or samples
    shown = ", ".join(map(str, named[:5])) + (", ..." if len(named) > 5 else "")
    row = f", the first of {limit + 1} in a row" if limit else ""
    return f"step {step}{row}: loss or gradient is not finite; samples {shown} of train; first in {where} -> {hint}"


HINTS = {
    "first": "look there for a division, a root, a logarithm, or weights that begin too large",
    "input": "clean these samples",
    "loss": "look at their targets, or set gradients.nonfinite to skip",
    "gradient": "lower the learning rate, set trainer.gradient_clip_val, or set gradients.nonfinite to skip",
}


def first_nonfinite(trainer: Trainer, batch: Batch, number: int) -> tuple[str, list[int] | None, str] | None:
    """Where a batch, run again, first gives a value that is not finite; the samples, if they can be told; a hint."""
    model = trainer.lightning_module
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.strategy.batch_to_device(model._on_before_batch_transfer(batch, 0), dataloader_idx=0)
    found: list[tuple[str, list[int] | None, str]] = []

    def note(where: str, value: Any, hint: str = "gradient") -> None:
        for t in value if isinstance(value, tuple) else (value,):
            if isinstance(t, Tensor) and not found and not t.isfinite().all():
                by_sample = t.ndim and len(t) == len(batch["index"])
                bad = ~t.isfinite().reshape(len(t), -1).all(1) if by_sample else None
                rows = None if bad is None or bad.all() else batch["index"][bad].tolist()
                found.append((where, rows, HINTS[hint]))

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kind = f"{name} ({type(module).__name__})"
            note(f"the output of {kind}", output)
            for t in output if isinstance(output, tuple) else (output,):
                if isinstance(t, Tensor) and t.requires_grad:
                    t.register_hook(lambda grad: note(f"the gradient of the output of {kind}", grad))

        return hook

    note("the input x", batch["x"], "input")
    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.enable_grad(), trainer.precision_plugin.train_step_context():
            loss: Any = model.training_step(batch, number)
            note("the loss", loss, "loss")
            named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for (name, _), grad in reversed(list(zip(named, grads, strict=True))):
        note(f"the gradient of {name}", grad)
    return found[0] if found else None
