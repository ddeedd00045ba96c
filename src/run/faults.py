"""What torch and Lightning raise in the midst of training, as one line with an exit code."""

import signal
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from src.run.command import exit_code
from src.run.device import has_bfloat16
from src.run.errors import ConfigError, DataError, EnvironmentFault, KnownError
from src.run.folder import RunFolder

OTHERS_SEC, LOST_SEC = 5.0, 2.0  # for other processes to end by themselves; until one that was killed is noticed
LIGHTNING = Path(lightning.__file__).parent
# By which Lightning refuses settings, and the parts of it that judge what a model's code does instead.
REFUSALS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)
JUDGES_CODE = (
    *("pytorch/core/", "pytorch/loops/optimization/", "pytorch/trainer/connectors/logger_connector/"),
    "pytorch/trainer/configuration_validator.py",
)


@contextmanager
def faults_of(trainer: Trainer, data: Any, folder: RunFolder) -> Iterator[None]:
    """Raise what goes wrong in a run as a known error, where it is one; other exceptions pass."""
    try:
        yield
    except Exception as e:
        if fault := known(e, trainer, data, folder):
            raise fault from e
        raise
    except SystemExit as e:  # by torchrun's signal to those that are left, while one of them ends by itself
        first = e.__context__ if trainer.world_size > 1 else None
        if isinstance(first, Exception) and (fault := lost_process(first, trainer, folder)):
            raise fault from e
        raise


def known(e: Exception, trainer: Trainer, data: Any, folder: RunFolder) -> KnownError | None:
    """The error of a run, or None for what is a bug, or says what it is by itself."""
    text = " ".join(str(e).split())
    lost = lost_process(e, trainer, folder)  # also ends the others
    if trainer.state.fn and not folder.checkpoints.is_dir():
        return EnvironmentFault(f"{folder.path}: the run folder was removed while the run wrote to it")
    if out_of_memory(e):
        return EnvironmentFault(levers(trainer, data))
    if isinstance(e, IndexError) and "Target" in text and "out of bounds" in text:  # cross_entropy's, on a CPU
        return DataError(f"targets: {text}, the network has {data.facts.get('num_classes')} classes -> mend the labels")
    if isinstance(e, UserWarning) and "Using a target size" in text:  # made an error in src/config/build.py
        return DataError(f"targets: {text.split('. ')[0]} -> give targets the shape of the network's output")
    lost_worker = getattr(trainer.train_dataloader, "lost_worker", None)
    if fault := (lost_worker and lost_worker(e)) or lost:
        return fault
    if isinstance(e, getattr(torch.distributed, "DistError", ())):  # not in builds for one process
        what = "-> check MASTER_ADDR and MASTER_PORT (a free port), then try again"
        return EnvironmentFault(f"the processes cannot reach each other: {text[:300]} {what}")
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
    launcher: Any = trainer.strategy.launcher
    started = list(getattr(launcher, "procs", ()))
    if started:
        launcher.procs.clear()  # else Lightning's observer would kill this process for the end of another
    exits: dict[int, int | None] = {}
    if trainer.world_size > 1 and exit_code(e) == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which torchrun sends to those that are left
        end = time.monotonic() + LOST_SEC
        while not exits and time.monotonic() < end:
            exits = folder.ended(trainer.world_size)
            time.sleep(0.1)
    end = time.monotonic() + OTHERS_SEC
    for process in started:  # it may wait for this one for ever
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0, end - time.monotonic()))
        process.kill()
        process.wait()
    for rank, code in sorted(exits.items(), key=lambda pair: pair[1] or -1):
        if code is None:
            return EnvironmentFault(f"another process of this run was killed: rank {rank} -> the same command goes on")
        if code > 1:
            fault = KnownError(f"another process of this run has failed: rank {rank} -> see its own line")
            fault.code = code
            return fault
    return None


def levers(trainer: Trainer, data: Any) -> str:
    """The cheapest ways to need less memory, and what each saves."""
    micro, ways = data.micro_batch_size or 1, []
    if micro > 1:
        smaller = max(n for n in range(1, micro // 2 + 1) if micro % n == 0)
        goes_on = "(the same command with that flag goes on)"
        ways.append(f"data.micro_batch_size {smaller} saves half of the activations {goes_on}")
    if str(trainer.precision).startswith("32") and has_bfloat16(trainer.strategy.root_device):
        ways.append("trainer.precision bf16-mixed saves about half of the activations")
    model: Any = trainer.lightning_module
    if model.network is not None and model.blocks() and not model.activation_checkpointing:
        ways.append("model.activation_checkpointing true saves most activations for about a third more time")
    where = f"after {trainer.global_step} steps with {micro} samples at once on {trainer.strategy.root_device}"
    return f"out of memory {where} -> {'; '.join([*ways, 'a smaller model.network'])}"
