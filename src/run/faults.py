"""What torch and Lightning raise in the midst of training, as one line with an exit code."""

import signal
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from src.run.command import exit_code
from src.run.errors import ConfigError, DataError, EnvironmentFault, KnownError
from src.run.folder import RunFolder
from src.run.terminal import count

OTHERS_SEC, LOST_SEC = 5.0, 2.0  # for other processes to end by themselves; until one that was killed is noticed
LIGHTNING = Path(lightning.__file__).parent
# By which Lightning refuses settings, and the parts of it that judge what a model's code does instead.
REFUSALS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)
JUDGES_CODE = ("pytorch/core/", "pytorch/loops/optimization/", "pytorch/trainer/connectors/logger_connector/")


@contextmanager
def faults_of(trainer: Trainer, model: LightningModule, data: Any, folder: RunFolder) -> Iterator[None]:
    """Raise what goes wrong in a run as a known error, where it is one; other exceptions pass."""
    try:
        yield
    except Exception as e:
        if fault := known(e, trainer, model, data, folder):
            raise fault from e
        raise
    except SystemExit as e:  # by torchrun's signal to those that are left, while one of them ends by itself
        first = e.__context__ if trainer.world_size > 1 else None
        if isinstance(first, Exception) and (fault := lost_process(first, trainer, folder)):
            raise fault from e
        raise


def known(e: Exception, trainer: Trainer, model: LightningModule, data: Any, folder: RunFolder) -> KnownError | None:
    """The error of a run, or None for what is a bug, or says what it is by itself."""
    text = " ".join(str(e).split())
    lost = lost_process(e, trainer, folder)  # also ends the others
    if not folder.checkpoints.is_dir():
        return EnvironmentFault(f"{folder.path}: the run folder was removed while the run wrote to it")
    if out_of_memory(e):
        return EnvironmentFault(levers(trainer, model, data))
    if isinstance(e, IndexError) and "Target" in text and "out of bounds" in text:  # cross_entropy's, on a CPU
        return DataError(f"targets: {text}, the network has {data.facts.get('num_classes')} classes -> mend the labels")
    if isinstance(e, UserWarning) and "Using a target size" in text:  # made an error in src/config/build.py
        return DataError(f"targets: {text.split('. ')[0]} -> give targets the shape of the network's output")
    lost_worker = getattr(trainer.train_dataloader, "lost_worker", None)
    if fault := (lost_worker and lost_worker(e)) or lost:
        return fault
    if isinstance(e, getattr(torch.distributed, "DistError", ())):  # not in builds for one process
        return EnvironmentFault(f"the processes cannot reach each other: {text[:300]} -> mend that, then try again")
    return refusal(e, has_trained=trainer.global_step > folder.first_step)


def out_of_memory(e: BaseException) -> bool:
    """Whether a device's memory or the host's has run out; the host's allocator says so in words."""
    return isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: can't allocate" in str(e)


def refusal(e: Exception, has_trained: bool) -> ConfigError | None:
    """What Lightning refuses with a `raise` of its own: a setting, but for what it says of a model's code.

    After the first step that is one only where Lightning names it so, or where one of its callbacks refuses.
    """
    last = traceback.extract_tb(e.__traceback__)[-1]
    if not isinstance(e, REFUSALS) or LIGHTNING not in Path(last.filename).parents:
        return None
    part = Path(last.filename).relative_to(LIGHTNING).as_posix()
    named = isinstance(e, MisconfigurationException) or part.startswith("pytorch/callbacks/")
    if part.startswith(JUDGES_CODE) or not (last.line or "").startswith("raise ") or (has_trained and not named):
        return None
    return ConfigError(f"trainer: {' '.join(str(e).split())[:400]} (--debug: where)")


def lost_process(e: Exception, trainer: Trainer, folder: RunFolder) -> KnownError | None:
    """What made this process fail, if that is another one; those that this one started have ended then."""
    exits = end_others(trainer)
    if exit_code(e) != 1:
        return None
    if trainer.world_size > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which torchrun sends to those that are left
    end = time.monotonic() + LOST_SEC
    while exits is None and time.monotonic() < end:
        exits = folder.ended(trainer.world_size) or None
        time.sleep(0.1)
    for rank, code in sorted((exits or {}).items(), key=lambda pair: pair[1] or -1):
        if code is None or code < 0:
            how = f"was killed by {signal.Signals(-code).name}" if code else "was killed"
            return EnvironmentFault(f"another process of this run {how}: rank {rank} -> the same command goes on")
        if code > 1:
            fault = KnownError(f"another process of this run has failed: rank {rank} -> see its own line")
            fault.code = code
            return fault
    return None


def end_others(trainer: Trainer) -> dict[int, int | None] | None:
    """End the processes that this one started for further devices, which may wait for this one for ever.

    Returns:
        The exit codes of those that had ended by themselves, or did so in `OTHERS_SEC`, by their ranks; None where
        others than this process have started them.
    """
    launcher: Any = trainer.strategy.launcher
    processes = list(getattr(launcher, "procs", ()))
    if not processes:
        return {} if trainer.world_size == 1 else None
    launcher.procs.clear()  # else Lightning's observer would kill this process for the end of another
    first, exits, end = trainer.node_rank * trainer.num_devices, {}, time.monotonic() + OTHERS_SEC
    for rank, process in enumerate(processes, first + 1):
        try:
            exits[rank] = process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return exits


def levers(trainer: Trainer, model: LightningModule, data: Any) -> str:
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
        smaller = max(n for n in range(1, micro // 2 + 1) if micro % n == 0)
        ways.append(f"data.micro_batch_size {smaller} saves {half} (the same command with that flag goes on)")
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
