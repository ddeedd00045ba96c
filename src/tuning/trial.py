"""A training in a process of its own, some steps at a time: its end, however that comes, ends nothing else."""

import copy
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from src.callbacks.ema import EMA
from src.callbacks.gradients import Gradients
from src.config.build import Experiment
from src.config.request import Request, merge
from src.run.command import end_with_parent, exit_code, one_line
from src.run.device import has_bfloat16
from src.run.errors import ConfigError
from src.run.faults import faults_of, out_of_memory

# A fork has loaded torch already. macOS's libraries do not bear one; this process itself never asks for a GPU.
PROCESSES: Any = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "fork")
MANY = 100_000  # steps of a run whose speed is measured: it is ended before
POLL_SEC = 0.2
Found = dict[str, Any]
clock = time.perf_counter


class Lost(Exception):
    """A trial has failed: `found` has the error, its exit code, whether memory ran out, and the losses so far."""

    def __init__(self, failed: str, **found: Any) -> None:
        super().__init__(failed)
        self.found: Found = {"failed": failed, "code": 1, "memory": False, "losses": [], **found}


class Trial:
    """Begins to train, and waits.

    Args:
        overlay: of the request's config.
        log: gets what the process prints.
        limit_sec: most seconds for an answer.
        waiting: called a few times a second meanwhile.
        steps: of the whole training, by which its schedule goes.
        rates: of a range test: the first and the last learning rate, as multiples of the config's.

    Raises:
        Lost: the trial has failed, ended or taken too long.
    """

    def __init__(
        self,
        request: Request,
        overlay: Found,
        log: Path,
        limit_sec: float,
        waiting: Callable[[], None],
        steps: int = MANY,
        rates: tuple[float, float] | None = None,
    ) -> None:
        self.limit_sec, self.waiting = limit_sec, waiting
        self.warm_sec = 0.0  # of the first steps, once they are done
        self.pipe, there = PROCESSES.Pipe()
        config = merge(copy.deepcopy(request.config), overlay)
        config = merge(config, {"trainer": {
            "max_steps": steps, "max_epochs": -1, "max_time": None, "fast_dev_run": False, "limit_val_batches": 0,
            "num_sanity_val_steps": 0, "enable_progress_bar": False,
        }})  # fmt: skip
        self.process = PROCESSES.Process(target=serve, args=(there, replace(request, config=config), log, steps, rates))
        self.process.start()
        there.close()
        self.facts = self.answer()

    def train(self, steps: int, skipped: int = 0) -> Found:
        """Seconds of so many steps after some that do not count, those of them spent waiting for data, and losses."""
        self.pipe.send((steps, skipped))
        return self.answer()

    def answer(self) -> Found:
        t0, found = clock(), None
        try:
            while not self.pipe.poll(POLL_SEC):
                self.waiting()
                if clock() - t0 > self.limit_sec:
                    raise Lost(f"took longer than {self.limit_sec:.0f} s")
            found = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise Lost(how, memory=code == -signal.SIGKILL) from None
        finally:
            if found is None or "failed" in found:
                self.stop()
        if "failed" in found:
            raise Lost(**found)
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Paced(Callback):
    """Trains as many steps as it is told to, answers, and waits. Nothing waits for the device in between."""

    def __init__(self, pipe: Any, total: int, rates: tuple[float, float] | None) -> None:
        self.pipe, self.total, self.rates = pipe, total, rates
        self.losses: list[Any] = []
        self.loss: Any = 0.0
        self.t_end = self.wait_sec = 0.0
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.highest = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        device, per_step = trainer.strategy.root_device, trainer.accumulate_grad_batches
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.pipe.send({
            "device": device.type, "precision": str(trainer.precision), "bfloat16": has_bfloat16(device),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(), "steps_per_epoch": int(trainer.num_training_batches / per_step),
            "batch_size": data.batch_size, "micro_batch_size": data.micro_batch_size,
            "batch_norm": any(isinstance(module, _BatchNorm) for module in pl_module.modules()),
        })  # fmt: skip
        self.wait(trainer)

    def wait(self, trainer: Trainer) -> None:
        self.left, self.skipped = self.pipe.recv()
        self.begin(trainer)

    def begin(self, trainer: Trainer) -> None:
        synchronize(trainer)
        self.losses, self.wait_sec, self.t_begin = [], 0.0, clock()
        self.t_end = self.t_begin

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.wait_sec += clock() - self.t_end
        if self.rates:
            first, last = self.rates
            rate = first * (last / first) ** (self.step / max(self.total - 1, 1))
            for group, highest in zip(trainer.optimizers[0].param_groups, self.highest, strict=True):
                group["lr"] = rate * highest  # in place of the schedule's

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.loss = self.loss + outputs["loss"].detach().float()  # Lightning has divided it by the micro-batches
        self.t_end = clock()
        if trainer.global_step == self.step:
            return  # in the midst of a step
        self.step = trainer.global_step
        self.losses.append(self.loss)
        self.loss = 0.0
        if self.skipped:
            self.skipped -= 1
            if not self.skipped:
                self.begin(trainer)
        else:
            self.left -= 1
            if not self.left:
                self.answer(trainer)

    def answer(self, trainer: Trainer) -> None:
        synchronize(trainer)
        self.pipe.send({"sec": clock() - self.t_begin, "wait_sec": self.wait_sec, "losses": numbers(self.losses)})
        self.wait(trainer)


def numbers(losses: list[Any]) -> list[float]:
    return torch.stack(losses).tolist() if losses else []


def synchronize(trainer: Trainer) -> None:
    if trainer.strategy.root_device.type in ("cuda", "mps"):
        torch.accelerator.synchronize()


@contextmanager
def alone(log: Path) -> Iterator[None]:
    """This process ends with its parent, writes to a file, and goes first where the machine's memory runs out."""
    end_with_parent(signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        torch.set_num_threads(torch.get_num_threads())  # a fork's pool of threads is made anew
        yield


def serve(pipe: Any, request: Request, log: Path, steps: int, rates: tuple[float, float] | None) -> None:
    """What the process of a trial does; nothing is written but to the log."""
    paced = Paced(pipe, steps, rates)
    with alone(log):
        try:
            experiment = Experiment(request)
            experiment.build(logger=False)
            trainer, data = experiment.trainer, experiment.datamodule
            if trainer.world_size > 1:
                share = data.batch_size // trainer.world_size
                one = f"--trainer.devices 1 --trainer.num_nodes 1 --data.batch_size {share}"
                raise ConfigError(f"trainer.devices: {trainer.world_size}, but tune measures one -> {one}")
            trainer.callbacks = [*(c for c in trainer.callbacks if isinstance(c, (Gradients, EMA))), paced]
            with faults_of(trainer, data, SimpleNamespace(path=log.parent, checkpoints=log.parent, first_step=0)):  # type: ignore[arg-type]
                trainer.fit(experiment.model, datamodule=data)
            raise ConfigError(f"trainer: training ends by itself after {trainer.global_step} steps")
        except BaseException as e:
            traceback.print_exc()
            memory = out_of_memory(e) or out_of_memory(e.__cause__ or e)
            pipe.send({"failed": one_line(e), "code": exit_code(e), "memory": memory, "losses": numbers(paced.losses)})
