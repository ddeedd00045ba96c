"""A training in a process of its own, some steps at a time: its end, however that comes, ends nothing else."""

import copy
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from src.callbacks.ema import EMA
from src.callbacks.gradients import Gradients
from src.callbacks.progress import device_text
from src.config.build import Experiment
from src.config.request import Request, merge
from src.run.child import Child, failure
from src.run.device import has_bfloat16
from src.run.errors import ConfigError, EnvironmentFault
from src.run.faults import faults_of

MANY = 100_000  # steps, of which none but the first are taken
BRIEF = {"max_epochs": -1, "max_time": None, "fast_dev_run": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
POLL_SEC = 0.2
Found = dict[str, Any]
clock = time.perf_counter


class Lost(Exception):
    """A trial has failed: `found` has the error, its exit code, whether memory ran out, and the losses so far."""

    def __init__(self, failed: str, **found: Any) -> None:
        super().__init__(failed)
        self.found: Found = {"failed": failed, "code": EnvironmentFault.code, "memory": False, "losses": [], **found}


class Trial:
    """Begins to train, tells what it found (`facts`), and waits.

    Args:
        overlay: of the request's config.
        log: gets what the process prints.
        limit_sec: most seconds for an answer.
        waiting: called a few times a second meanwhile; what it raises ends the trial.
        steps: of the whole training, by which its schedule goes.
        rates: of a range test: the learning rate of each step, as a multiple of the config's.

    Raises:
        Lost: it has failed, ended or taken too long; also by `train`.
    """

    def __init__(
        self, request: Request, overlay: Found, log: Path, limit_sec: float, waiting: Callable[[], Any],
        steps: int = MANY, rates: Sequence[float] = (),
    ) -> None:  # fmt: skip
        self.limit_sec, self.waiting = limit_sec, waiting
        self.warm_sec = 0.0  # of the first steps, once they are done
        config = merge(copy.deepcopy(request.config), overlay)
        config = merge(config, {"trainer": {**BRIEF, "max_steps": steps, "enable_progress_bar": False}})
        self.child = Child(log, serve, replace(request, config=config), log.parent, rates)
        self.facts = self.answer()

    def train(self, steps: int, skipped: int = 0) -> Found:
        """Seconds of so many steps, after some that do not count; those spent waiting for data; losses."""
        with suppress(ConnectionError):  # it has ended, which the answer will say
            self.child.pipe.send((steps, skipped))
        return self.answer()

    def answer(self) -> Found:
        t0, found = clock(), None
        try:
            while self.waiting() or not self.child.pipe.poll(POLL_SEC):
                if clock() - t0 > self.limit_sec:
                    raise Lost(f"took longer than {self.limit_sec:.0f} s")
            found = self.child.answer()
        finally:
            if found is None or "failed" in found:
                self.child.stop()
        if "failed" in found:
            raise Lost(**found)
        return found


class Paced(Callback):
    """Trains as many steps as it is told to, answers, and waits. Nothing waits for the device in between."""

    def __init__(self, pipe: Any, rates: Sequence[float]) -> None:
        self.pipe, self.rates = pipe, rates
        self.losses: list[Any] = []
        self.loss: Any = 0.0
        self.step, self.prepare_sec = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.highest = [group.get("initial_lr", group["lr"]) for group in trainer.optimizers[0].param_groups]
        device, data = trainer.strategy.root_device, trainer.datamodule  # type: ignore[attr-defined]
        able = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self.pipe.send({
            "device": device.type, "text": device_text(trainer), "bfloat16": has_bfloat16(device),
            "cpus": sorted(able), "cores": len(able), "omp": os.environ.get("OMP_NUM_THREADS"),
            "content": data.content, "on_device": getattr(trainer.train_dataloader, "device", None) is not None,
            "threads": torch.get_num_threads(), "prepare_sec": self.prepare_sec, "precision": str(trainer.precision),
            "batch_size": data.batch_size, "micro_batch_size": data.micro_batch_size,
            "steps_per_epoch": int(trainer.num_training_batches / trainer.accumulate_grad_batches),
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
        for group, highest in zip(trainer.optimizers[0].param_groups, self.highest, strict=True) if self.rates else ():
            group["lr"] = self.rates[self.step] * highest  # in place of the schedule's

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
        elif len(self.losses) == self.left:
            synchronize(trainer)
            self.pipe.send({"sec": clock() - self.t_begin, "wait_sec": self.wait_sec, "losses": self.numbers()})
            self.wait(trainer)

    def numbers(self) -> list[float]:
        return torch.stack(self.losses).tolist() if self.losses else []


def synchronize(trainer: Trainer) -> None:
    if trainer.strategy.root_device.type in ("cuda", "mps"):
        torch.accelerator.synchronize()


def serve(pipe: Any, request: Request, folder: Path, rates: Sequence[float]) -> Found:
    """What the process of a trial does until it is ended; gives why that did not come to pass."""
    paced = Paced(pipe, rates)
    try:
        experiment = Experiment(request)
        experiment.build(logger=False)
        trainer, data = experiment.trainer, experiment.datamodule
        if (n := trainer.world_size) > 1:
            one = f"--trainer.devices 1 --trainer.num_nodes 1 --data.batch_size {data.batch_size // n}"
            raise ConfigError(f"trainer.devices: {n}, but tune measures one -> {one}")
        trainer.callbacks = [*(c for c in trainer.callbacks if isinstance(c, (Gradients, EMA))), paced]
        nowhere: Any = SimpleNamespace(path=folder, checkpoints=folder, first_step=0)
        with faults_of(trainer, data, nowhere):
            t0 = clock()
            data.prepare_data()
            paced.prepare_sec = clock() - t0
            trainer.fit(experiment.model, datamodule=data)
        raise ConfigError(f"trainer: training ends by itself after {trainer.global_step} steps")
    except BaseException as e:
        return failure(e) | {"losses": paced.numbers()}
