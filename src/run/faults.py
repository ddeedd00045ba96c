"""What torch raises in the midst of training, as one line with an exit code."""

import signal
import subprocess
import time
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from src.data.loader import Loader, out_of_memory
from src.data.module import DataModule
from src.models.base import Model
from src.run.command import exit_code
from src.run.errors import ConfigError, DataError, EnvironmentFault, KnownError
from src.run.terminal import count

OTHERS_SEC = 5.0  # for other processes to end by themselves


def known(e: BaseException, trainer: Trainer, model: Model, data: DataModule) -> KnownError | None:
    """The error of a run, or None for what is a bug, or says what it is by itself."""
    text, codes = " ".join(str(e).split()), end_others(trainer)
    if out_of_memory(e):
        return EnvironmentFault(levers(trainer, model, data))
    if isinstance(e, MisconfigurationException) or text.startswith("`val_check_interval`"):
        return ConfigError(f"trainer: {text[:300]}")
    if isinstance(e, IndexError) and "Target" in text and "out of bounds" in text:  # cross_entropy's, on a CPU
        return DataError(f"targets: {text}, the network has {data.facts.get('num_classes')} classes -> mend the labels")
    if isinstance(e, UserWarning) and "Using a target size" in text:  # made an error in src/config/build.py
        return DataError(f"targets: {text.split('. ')[0]} -> give targets the shape of the network's output")
    loader = trainer.train_dataloader
    lost = loader.lost_worker(e) if isinstance(loader, Loader) and isinstance(e, Exception) else None
    return lost or (lost_process(codes) if exit_code(e) == 1 else None)


def end_others(trainer: Trainer) -> list[int]:
    """End the processes that this one started for further devices, which may wait for this one for ever.

    Returns:
        The exit codes of those that had ended by themselves, or did so in `OTHERS_SEC`.
    """
    launcher: Any = trainer.strategy.launcher
    processes, codes = list(getattr(launcher, "procs", ())), []
    if processes:
        launcher.procs.clear()  # else Lightning's observer would kill this process for the end of another
    end = time.monotonic() + OTHERS_SEC
    for process in processes:
        try:
            codes.append(process.wait(max(0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return codes


def lost_process(codes: list[int]) -> KnownError | None:
    """What made this process fail, if that is another one."""
    code = next((code for code in codes if code not in (0, 1)), 0)
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        return EnvironmentFault(f"another process of this run {how} -> the same command goes on")
    fault = KnownError("another process of this run has failed -> see its own line")
    fault.code = code
    return fault if code else None


def levers(trainer: Trainer, model: Model, data: DataModule) -> str:
    """The cheapest ways to need less memory, and what each saves."""
    weights = size(model.parameters())
    grads = size(p for p in model.parameters() if p.requires_grad)
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    state = size(t for s in optimizer.state.values() for t in s.values()) if optimizer else 0
    if optimizer and not state and "betas" in optimizer.defaults:
        state = 2 * grads  # before the first step of an Adam
    micro, peak = data.micro_batch_size or 1, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    activations = (peak - weights - grads - state) / 2
    half = "half of the activations" + (f", about {count(activations, 'B')}" if activations > 0 else "")
    ways = []
    if micro > 1:
        ways.append(f"data.micro_batch_size {halved(micro)} saves {half}")
    if micro > 1 and not data.auto_micro_batch:
        ways.append("data.auto_micro_batch true does that by itself")
    if str(trainer.precision).startswith("32"):
        ways.append(f"trainer.precision bf16-mixed saves about {half}")
    if state > grads:
        saved = count(state - grads, "B")
        ways.append(f"an optimizer with one number for each weight, as SGD with momentum, saves {saved}")
    held = f"weights {count(weights, 'B')}, gradients {count(grads, 'B')}, optimizer {count(state, 'B')}"
    return (
        f"out of memory after {trainer.global_step} steps with {micro} samples at once on "
        f"{trainer.strategy.root_device}: {held}, the rest are activations -> {'; '.join(ways)}"
    )


def size(tensors: Any) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def halved(micro: int) -> int:
    """The largest micro-batch of at most half the size that divides this one, and so the batch."""
    return max(n for n in range(1, micro // 2 + 1) if micro % n == 0)
