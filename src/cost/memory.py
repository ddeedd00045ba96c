"""The memory of one device in training, by running two steps of the very model and optimizer on fake tensors."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from src.cost.kernels import Kernels, scratch
from src.cost.tracker import Tracker

Batch = dict[str, Any]
STEPS = 2  # the first one makes the states of the optimizer


@dataclass
class Step:
    """How an optimizer step is done.

    Args:
        forward: what the forward pass runs in, such as autocast.
        micro_batches: so many make a step.
        clip: by the norm of the gradients.
        measured: the weights are copied, to measure an update.
        averaged: another copy of the weights is kept.
        device: `cuda`, `cpu`, ...; what kernels allocate differs.
    """

    forward: Callable[[], AbstractContextManager[Any]] = nullcontext
    micro_batches: int = 1
    clip: bool = False
    measured: bool = True
    averaged: bool = False
    device: str = "cpu"


@dataclass
class Usage:
    """Of one device: `parts` is bytes by part at the peak; operations are of one micro-batch, and of the optimizer."""

    parts: dict[str, int] = field(default_factory=dict)
    unknown: str = ""  # why nothing is known
    flops: int = 0
    recomputed_flops: int = 0
    optimizer_flops: int = 0

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def measure(
    model: Any, make_optimizer: Callable[[], Optimizer], batch: Batch, step: Step, waiting: Batch
) -> Usage:
    """Run training steps of a model on the meta device, whose weights become fake ones; nothing is allocated.

    Args:
        batch: as the model's `training_step` gets it, of any device.
        waiting: a batch that is there already for the next step.

    Raises:
        Exception: of any kind; code that looks at its numbers cannot run so.
    """
    on_gpu = step.device != "cpu"
    tracker = Tracker(lambda *call: 0, 512) if on_gpu else Tracker(scratch)
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, buffers = materialize(model)
        batch, waiting = ({name: fake(t) for name, t in both.items()} for both in (batch, waiting))
        with tracker, Kernels(step.device, tracker):
            for part, tensors in (("weights", weights), ("buffers", buffers), ("data", (batch, waiting))):
                tracker.part = part
                tracker.note(tensors)
            return run(model, make_optimizer, batch, step, tracker, weights, buffers)


def run(
    model: Any, make_optimizer: Any, batch: Any, step: Step, tracker: Tracker, weights: list[Any], buffers: list[Any]
) -> Usage:
    hooks = list(watch(model, weights, tracker))
    optimizer = make_optimizer()
    if step.device == "cuda":
        as_on_gpu(optimizer)
    tracker.part = "average"
    average = [t.clone() for t in (*weights, *buffers) if t.is_floating_point()] if step.averaged else []
    usage = Usage()
    for _ in range(STEPS):
        tracker.most = 0
        before = tracker.flops, tracker.recomputed
        for i in range(min(step.micro_batches, 2)):
            micro_batch(model, optimizer, batch, step, tracker, first=i == 0)
            if i == 0:
                usage.flops, usage.recomputed_flops = tracker.flops - before[0], tracker.recomputed - before[1]
        before = tracker.flops, 0
        update(optimizer, weights, step, tracker)
        usage.optimizer_flops = tracker.flops - before[0]
    for hook in hooks:
        hook.remove()
    usage.parts = {part: size for part, size in tracker.peak.items() if size}
    return usage


def micro_batch(model: Any, optimizer: Optimizer, batch: Any, step: Step, tracker: Tracker, first: bool) -> None:
    """In Lightning's order: the old gradients are there until the forward pass has ended."""
    tracker.part = "activations"
    with step.forward():
        loss = model.training_step(batch, 0)
    loss = loss["loss"] if isinstance(loss, dict) else loss
    if first:
        optimizer.zero_grad()
    tracker.part, tracker.in_backward = "temporary", True
    (loss / step.micro_batches).backward()
    tracker.in_backward = False


def update(optimizer: Optimizer, weights: list[Any], step: Step, tracker: Tracker) -> None:
    tracker.part = "temporary"
    trained = [p for p in weights if p.grad is not None]
    copies: list[Tensor] = []
    if step.measured:
        get_total_norm([p.grad for p in trained])
        tracker.part = "copies"
        copies = [p.detach().clone() for p in trained]
        tracker.part = "temporary"
    if step.clip:
        clip_grad_norm_(trained, 1.0)
    optimizer.step()
    tracker.move("optimizer", *optimizer.state.values())
    if copies:
        get_total_norm([p.detach() - before for p, before in zip(trained, copies, strict=True)])


def watch(model: Any, weights: list[Any], tracker: Tracker) -> Iterator[Any]:
    """Hooks by which gradients, logits and what the loss makes of them are told from the rest."""
    for p in weights:
        if p.requires_grad:
            yield p.register_post_accumulate_grad_hook(lambda p: tracker.move("gradients", p.grad))

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        tracker.move("logits", output)
        tracker.part = "logits"

    yield model.network.register_forward_hook(ended)


def materialize(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """Put fake tensors on the CPU in place of a model's own; gives the parameters and the buffers, each once."""
    made: dict[Tensor, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, t in tensors.items():
                if t is not None and t not in made:
                    new = fake(t.detach())
                    is_weight = isinstance(t, nn.Parameter)
                    made[t] = nn.Parameter(new, t.requires_grad) if is_weight else new
                if t is not None:
                    tensors[name] = made[t]
    weights = [t for t in made.values() if isinstance(t, nn.Parameter)]
    return weights, [t for t in made.values() if not isinstance(t, nn.Parameter)]


def fake(t: Any) -> Any:
    if not isinstance(t, Tensor):
        return t
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")


def as_on_gpu(optimizer: Optimizer) -> None:
    """torch updates all parameters at once there, if the optimizer is not fused."""
    for group in optimizer.param_groups:
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True


def enlarged(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """The same batch with another number of samples, on the meta device."""
    now = len(batch["index"])

    def of(t: Any) -> Any:
        if not isinstance(t, Tensor) or not t.ndim or len(t) != now:
            return t
        form = torch.channels_last if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) else None
        out = torch.empty(size, *t.shape[1:], dtype=t.dtype, device="meta")
        return out.contiguous(memory_format=form) if form and not t.is_contiguous() else out

    return {name: of(t) for name, t in batch.items()}
