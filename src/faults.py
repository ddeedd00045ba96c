"""What torch raises in the midst of training, as one line with an exit code."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from src.cost import count
from src.data.loader import Loader, out_of_memory
from src.data.module import DataModule
from src.errors import DataError, EnvironmentFault, KnownError

if TYPE_CHECKING:
    from src.models.base import Model


def known(e: BaseException, trainer: Trainer, model: "Model", data: DataModule) -> KnownError | None:
    """The error of a run, or None for what is a bug."""
    text = " ".join(str(e).split())
    if out_of_memory(e):
        return EnvironmentFault(levers(trainer, model, data))
    if isinstance(e, IndexError) and "Target" in text and "out of bounds" in text:  # cross_entropy's, on a CPU
        return DataError(f"targets: {text}, the network has {data.facts.get('num_classes')} classes -> mend the labels")
    if isinstance(e, UserWarning) and "Using a target size" in text:  # made an error in src/cli.py
        return DataError(f"targets: {text.split('. ')[0]} -> give targets the shape of the network's output")
    loader = trainer.train_dataloader
    return loader.lost_worker(e) if isinstance(loader, Loader) and isinstance(e, Exception) else None


def levers(trainer: Trainer, model: "Model", data: DataModule) -> str:
    """The cheapest ways to need less memory, and what each saves."""
    weights = size(model.parameters())
    grads = size(p for p in model.parameters() if p.requires_grad)
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    state = size(t for s in optimizer.state.values() for t in s.values()) if optimizer else 0
    if optimizer and not state and "betas" in optimizer.defaults:
        state = 2 * grads  # before the first step of an Adam
    micro, fixed = data.micro_batch_size or 1, weights + grads + state
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    half = "half of the activations" + (f", about {count((peak - fixed) / 2, 'B')}" if peak > fixed else "")
    ways = []
    if micro > 1:
        ways.append(f"data.micro_batch_size {halved(micro)} saves {half}")
        ways.append("data.auto_micro_batch true does that by itself" if not data.auto_micro_batch else "")
    if str(trainer.precision).startswith("32"):
        ways.append(f"trainer.precision bf16-mixed saves about {half}")
    if state > grads:
        ways.append(
            f"an optimizer with one number for each weight, as SGD with momentum, saves {count(state - grads, 'B')}"
        )
    held = ", ".join(
        (f"weights {count(weights, 'B')}", f"gradients {count(grads, 'B')}", f"optimizer {count(state, 'B')}")
    )
    return (
        f"out of memory after {trainer.global_step} steps with {micro} samples at once on "
        f"{trainer.strategy.root_device}: {held}, the rest are activations -> " + "; ".join(w for w in ways if w)
    )


def size(tensors: Any) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def halved(micro: int) -> int:
    """The largest micro-batch of at most half the size that divides this one, and so the batch."""
    return max(n for n in range(1, micro // 2 + 1) if micro % n == 0)
