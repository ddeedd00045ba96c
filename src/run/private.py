"""All private parts of Lightning and torch that this project reaches into, and which promise needs each.

`tests/run/test_private.py` calls each one, and fails where a new release takes it away or changes what it does.
"""

import atexit
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from src.run.errors import EnvironmentFault


def cluster_environment(trainer: Trainer) -> Any:
    """For requeueing under SLURM, and for processes that must agree on a checkpoint: what started the processes."""
    return trainer._accelerator_connector.cluster_environment


def start_process_group(strategy: Any) -> None:
    """For a mesh of devices of our own: what ModelParallelStrategy does before it makes one."""
    strategy._setup_distributed()


def forks_within_fit(trainer: Trainer) -> bool:
    """For ranks that are known from the start: whether the further processes begin within `fit`, as functions."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def attach_data(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> None:
    """For `--dry_run`, which counts steps without a fit: make model and data known to the trainer, as a fit does."""
    trainer._data_connector.attach_data(model, datamodule=data)


def steps_logged(trainer: Trainer) -> int:
    """For equal logs after a restart: the number under which the loggers get the next metrics."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_steps_logged(trainer: Trainer, steps: int) -> None:
    """For equal logs after a restart: Lightning sometimes counts one step too many then."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def skip_idle_hooks(callbacks: Iterable[Callback]) -> None:
    """For steps that cost little: Lightning calls the hooks of a step of each callback, most of which do nothing; those
    that are None it leaves out. In the class they stay what they are, for `super()`."""
    when = ("train_batch_start", "before_zero_grad", "before_backward", "after_backward", "before_optimizer_step")
    for hook in [f"on_{name}" for name in (*when, "train_batch_end")]:
        for callback in callbacks:
            if getattr(getattr(callback, hook), "__func__", None) is getattr(Callback, hook):
                setattr(callback, hook, None)


def leave(code: int) -> None:
    """For a quick end, as the last exit handler to be registered, which is the first to be called: do what the others
    would, and end the process. Python would take down all that torch and Lightning hold, object by object, for a third
    of the time that they took to load."""
    atexit.unregister(leave)
    atexit._run_exitfuncs()  # as multiprocessing ends its processes
    with suppress(OSError, ValueError):  # nobody reads, or it is closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or hasattr(sys, "last_type"))  # that of an error after the command


def any_nonfinite(grads: list[Tensor]) -> Tensor:
    """For a guard that costs next to nothing: 1 if there is NaN or infinity, else 0, without waiting for the device.

    As torch's loss scaler looks, at a scale of 1: on a CPU it takes a fifth of the time of a norm. The gradients must
    be on one device; they stay as they are.
    """
    found = torch.zeros((), device=grads[0].device)
    for dtype in {grad.dtype for grad in grads}:
        same = [grad for grad in grads if grad.dtype == dtype]
        torch._amp_foreach_non_finite_check_and_unscale_(same, found, torch.ones_like(found))
    return found


def skip_on_device(optimizer: Optimizer, skip: Tensor) -> None:
    """For bad steps that are left out without waiting for the device: what the loss scaler tells fused optimizers."""
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]


def leave_unscaling_to_scaler(optimizer: Optimizer) -> None:
    """For clipping in float16: fused optimizers would unscale the gradients after they are clipped."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def worker_processes(loader: DataLoader) -> list[BaseProcess]:
    """For the line that says how a data worker died: the loader's processes, in the order of their numbers."""
    return getattr(loader._iterator, "_workers", [])


def check_compiler(key: str, device: torch.device) -> None:
    """For a line in place of pages at the first batch: raise EnvironmentFault where torch finds no compiler, which a
    key of the config asks for."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a second, which most runs need not wait
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        found = bool(get_cpp_compiler()) if device.type == "cpu" else has_triton()
    except InvalidCxxCompiler:
        found = False
    if not found:
        what = "a C++ compiler, such as g++ (CXX names another)" if device.type == "cpu" else "triton"
        raise EnvironmentFault(f"{key}: it compiles, but no compiler is found -> install {what}, or leave it out")


def fake_tensors() -> Any:
    """For plans that allocate nothing: in this mode tensors have shapes and no numbers, on a CPU also in backward."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def times_written(tensor: Tensor) -> int:
    """For layers that get no gradient: how often a tensor has been written to in place."""
    return tensor._version
