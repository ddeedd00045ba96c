"""The memory of one device in training, by running a step of the very model and optimizer on fake tensors."""

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from src.cost.kernels import Kernels
from src.cost.tracker import Events, Tracker, peak
from src.run.private import fake_tensors

Batch = dict[str, Any]
Parts = dict[str, int]  # bytes


@dataclass
class Step:
    """How an optimizer step is done.

    Args:
        forward: what the forward pass runs in, such as autocast.
        micro_batches: so many make a step.
        clip: by the norm of the gradients.
        measured: the weights are copied, to measure an update.
        averaged: an average of the weights is kept.
        device: `cuda`, `cpu`, ...: what kernels allocate differs.
    """

    forward: Callable[[], AbstractContextManager[Any]] = nullcontext
    micro_batches: int = 1
    clip: bool = False
    measured: bool = False
    averaged: bool = False
    device: str = "cpu"


@dataclass
class Usage:
    """Of one device: what comes and goes in the passes forward and backward, and in the update; operations of one
    micro-batch, and of the update."""

    passes: Events = field(default_factory=list)
    update: Events = field(default_factory=list)
    flops: int = 0
    recomputed: int = 0
    update_flops: int = 0
    unknown: str = ""  # why nothing is known

    def parts(
        self, shares: dict[str, float] | None = None, passing: Parts | None = None, always: Parts | None = None
    ) -> Parts:
        """Bytes by part at the larger peak, with what there is besides.

        Args:
            shares: of each part, what one device keeps.
        """
        passes, update = (peak(events, {"compiled": 0.0} | (shares or {})) for events in (self.passes, self.update))
        both = (passes | (passing or {}) | (always or {}), update | (always or {}))
        return max(both, key=lambda parts: sum(parts.values()))


def measure(model: Any, make_optimizer: Callable[[Any], Optimizer], batch: Batch, waiting: Batch, step: Step) -> Usage:
    """Run training steps of a copy of a model, whose tensors have no numbers; nothing is allocated.

    Args:
        batch: as the model's `training_step` gets it, of any device.
        waiting: a batch that is there already for the next step.

    Raises:
        Exception: of any kind; code that looks at its numbers cannot run so.
    """
    tracker = Tracker(step.device == "cuda")
    mode = fake_tensors()
    model = fake_copy(model, mode)
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]), mode:
        batch, waiting = tree_map_only(Tensor, fake, (batch, waiting))
        with tracker, Kernels(tracker), torch.compiler.set_stance("force_eager"):
            for part, tensors in (("weights", [*model.parameters()]), ("buffers", [*model.buffers()])):
                tracker.note(tensors, part)
            tracker.note((batch, waiting), "data")
            return run(model, make_optimizer(model), batch, step, tracker)


def run(model: Any, optimizer: Optimizer, batch: Batch, step: Step, tracker: Tracker) -> Usage:
    watch(model, tracker)
    if step.device == "cuda":
        for group in optimizer.param_groups:  # torch updates all parameters at once there
            if group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True
    if step.averaged:
        average = [t.detach().clone() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        tracker.move("average", average)
    micro_batch(model, optimizer, batch, step, tracker)
    flops, recomputed = tracker.flops, tracker.recomputed
    passes = tracker.restart()
    update(model, optimizer, step, tracker)
    tracker.restart()
    states = [(part, size) for part, size in tracker.parts.values() if part == "optimizer"]
    update(model, optimizer, step, tracker)  # the first one made the states
    return Usage(states + passes, tracker.events, flops, recomputed, tracker.flops)


def micro_batch(model: Any, optimizer: Optimizer, batch: Batch, step: Step, tracker: Tracker) -> None:
    """In Lightning's order: the old gradients are there until the forward pass has ended; those of the micro-batches
    before, which is where most is needed, until the end."""
    for p in model.parameters():
        p.grad = torch.empty_like(p) if p.requires_grad else None
        tracker.move("gradients", p.grad)
    tracker.part = "activations"
    with step.forward():
        loss = model.training_step(batch, 0)
    loss = loss["loss"] if isinstance(loss, dict) else loss
    if step.micro_batches == 1:
        optimizer.zero_grad()
    tracker.part, tracker.in_backward = "temporary", True
    (loss / step.micro_batches).backward()
    tracker.in_backward = False


def update(model: Any, optimizer: Optimizer, step: Step, tracker: Tracker) -> None:
    """As src/callbacks/gradients.py and Lightning do it."""
    tracker.part = "update"
    trained: list[Any] = [p for p in model.parameters() if p.grad is not None]
    copies: list[Tensor] = []
    if step.measured:
        get_total_norm([p.grad for p in trained])
        tracker.part = "copies"
        copies = [p.detach().clone() for p in trained]
        tracker.part = "update"
    if step.clip:
        clip_grad_norm_(trained, 1.0)
    if type(optimizer).__module__.startswith("torchao."):
        tracker.part = "compiled"  # its step is, so that nothing is kept between its operations
    optimizer.step()
    tracker.part = "update"
    tracker.move("optimizer", list(optimizer.state.values()))
    if copies:
        get_total_norm(copies)
        torch._foreach_sub_(copies, [p.detach() for p in trained])  # as Gradients does


def watch(model: Any, tracker: Tracker) -> None:
    """Hooks by which gradients, logits and what the loss makes of them are told from the rest."""
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: tracker.move("gradients", p.grad))

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        tracker.move("logits", output)
        tracker.part = "logits"

    model.network.register_forward_hook(ended)


def fake_copy(model: Any, mode: Any) -> Any:
    """A model with fake tensors on the CPU in place of its weights and buffers, and of the same trainer."""
    with mode:
        memo: dict[int, Any] = {id(p): nn.Parameter(fake(p.detach()), p.requires_grad) for p in model.parameters()}
        memo |= {id(b): fake(b) for b in model.buffers()}
    copied = copy.deepcopy(model, memo)
    copied.trainer = model.trainer
    return copied


def fake(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")


def enlarged(batch: Batch, size: int) -> Batch:
    """A batch with another number of samples, on the meta device."""
    now = len(batch["index"])

    def of(t: Tensor) -> Tensor:
        if not t.ndim or len(t) != now:
            return t
        is_last = t.ndim == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)
        out = torch.empty(size, *t.shape[1:], dtype=t.dtype, device="meta")
        return out.contiguous(memory_format=torch.channels_last) if is_last else out

    return tree_map_only(Tensor, of, batch)
