"""Short real trainings, each in a process of its own, watched by the checks."""

import math
import os
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.diagnosis.finding import BADLY, Finding, Unknown
from src.diagnosis.levers import network_of, numbers_of
from src.diagnosis.subject import Subject, Trial
from src.run.child import Child, failure
from src.run.errors import EnvironmentFault
from src.tuning.trial import synchronize

NO_TIME = "no time was left"
WARM = 4  # steps that are slow
LIMIT_SEC = 90.0  # for one training, beside what its steps should take
GRACE_SEC = 20.0  # for what has begun in time
Job = tuple[Callable[..., Any], tuple[Any, ...]]
Make = Callable[[], Sequence["Observer"]]  # of the watches of one training
clock = time.perf_counter


class Observer(Callback):
    """Looks at a short training, through the Trainer's hooks, and says what it has found. It must not change what is
    trained, and works with any LightningModule: `trainer.datamodule` and `pl_module.network` may be missing."""

    name = ""  # under which `measured` and what fails is told; by default that of the class

    def found(self, trainer: Trainer, model: LightningModule) -> list[Finding]:
        return []

    def measured(self) -> dict[str, Any]:
        """Numbers for the report."""
        return {}


@dataclass
class Probe:
    """What a short training gave.

    Args:
        losses: of each step, as far as it came; NaN where the model gives none. A step is a batch in which optimizers
            take theirs.
        rates: the highest rate of each step, as a schedule or the code sets it.
        scores: what each validation logged, `step` with it; `untrained`: what one before the first step did.
        step_sec: seconds of each step after the first ones.
        failed: the error, with its exit `code`; `memory` says whether that ran out.
        extra: what the subject's data and model are like: sizes, device, names.
    """

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    untrained: dict[str, float] = field(default_factory=dict)
    step_sec: list[float] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    code: int = 0
    memory: bool = False


def curves_of(base: Probe, metric: str) -> dict[str, Any]:
    """The losses of training, each a mean of some steps, and the scores of validation, over steps."""
    each = max(1, len(base.losses) // 100)
    means = [statistics.fmean(base.losses[i : i + each]) for i in range(0, len(base.losses), each)]
    found = {"train/loss": ([each * (i + 1) for i in range(len(means))], means)}
    scores = [(one["step"], one[metric]) for one in base.scores if metric in one]
    return found | ({metric: tuple(zip(*scores, strict=True))} if scores else {})


class Recorder(Callback):
    """Losses, times and validations of a training; it stops after so many steps, or `most_sec`."""

    def __init__(self, most_sec: float, steps: int) -> None:
        self.probe, self.most_sec, self.steps, self.t0 = Probe(), most_sec, steps, clock()
        self.losses: list[Any] = []
        self.loss: Any = 0.0
        self.step, self.batches, self.taken, self.counted = 0, 0, False, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.t0 = self.t_step = clock()
        self.probe.extra |= known_of(trainer, pl_module)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.on_step)

    def on_step(self, *_: Any) -> None:
        self.taken = True  # Lightning counts no step of an optimizer that it has not wrapped

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.loss = self.loss + (loss.detach().float() if isinstance(loss, torch.Tensor) else math.nan)
        self.batches += 1
        late, idle = clock() - self.t0 > self.most_sec, not self.step and self.batches >= without_step(trainer)
        trainer.should_stop = trainer.should_stop or late or idle
        if self.taken or trainer.global_step > self.counted:
            self.on_step_end(trainer)
        elif idle:
            text, todo = f"no optimizer has taken a step in {self.batches} batches", "call its step()"
            numbers = {"batches": self.batches}
            found = Finding("untrained_parameters", BADLY, text, numbers, 1.0, 0.95, todo=todo, certain=True)
            self.probe.findings = [found]

    def on_step_end(self, trainer: Trainer) -> None:
        self.step, self.taken, self.counted = self.step + 1, False, trainer.global_step
        self.losses.append(self.loss)
        self.probe.rates.append(highest(trainer))
        if self.step > WARM:
            synchronize(trainer)
            self.probe.step_sec.append(clock() - self.t_step)
        self.loss, self.t_step = 0.0, clock()
        trainer.should_stop = trainer.should_stop or self.step >= self.steps

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.sanity_checking:
            self.probe.untrained = scores
            return
        self.probe.scores.append({**scores, "step": self.step})
        self.t_step = clock()

    def whole(self) -> Probe:
        self.probe.losses = [float(loss) for loss in self.losses]
        return self.probe


def without_step(trainer: Trainer) -> float:
    """After so many batches no step is a fault; one may come at the end of an epoch."""
    return max(200, 2 * trainer.num_training_batches)


def highest(trainer: Trainer) -> float:
    return max((float(g["lr"]) for optimizer in trainer.optimizers for g in optimizer.param_groups), default=0.0)


def known_of(trainer: Trainer, model: LightningModule) -> dict[str, Any]:
    data: Any = getattr(trainer, "datamodule", None)
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    numbers = {"parameters": sum(p.numel() for p in model.parameters()), "steps_per_epoch": per_epoch}
    sizes = {name: getattr(data, name, None) for name in ("batch_size", "micro_batch_size", "num_samples")}
    where = {"device": trainer.strategy.root_device.type, "precision": str(trainer.precision)}
    plateaus = [how for how in trainer.lr_scheduler_configs if how.monitor]
    monitored = [(how.monitor, getattr(how.scheduler, "mode", "min")) for how in plateaus]
    more = {"optimizers": len(trainer.optimizers), "monitored": monitored, **numbers_of(trainer, model)}
    return {**numbers, **sizes, **where, **more, "lr": highest(trainer), "network": type(network_of(model)).__name__}


class Runner:
    """Runs short trainings, on a CPU as many at once as there are cores, one thread each.

    Args:
        log: gets what they print.
        until: the time (of `time.monotonic`) at which none begins any more.
        waiting: called a few times a second.
    """

    def __init__(self, subject: Subject, log: Path, until: float, waiting: Callable[[], Any] = int) -> None:
        self.subject, self.log, self.until, self.waiting = subject, log, until, waiting
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = 0  # of trainings
        self.jobs = 1 if torch.accelerator.is_available() else min(cores, 4)
        # OpenMP's threads do not live on in a fork, and whoever made a module may have used them: it waits for ever.
        self.one_thread = self.jobs > 1 or not hasattr(subject, "request")

    def late(self) -> bool:
        return time.monotonic() > self.until

    def run(self, trials: Sequence[Trial], watches: Make = tuple, most_sec: float = 60.0) -> list[Probe]:
        """What each gives, in their order; those for which there is no time have failed."""
        jobs = [(run_trial, (self.subject, trial, watches, most_sec, self.one_thread)) for trial in trials]
        limit = most_sec + LIMIT_SEC
        return [p if isinstance(p, Probe) else Probe(**p) for p in self.all(jobs, limit)]

    def all(self, jobs: Sequence[Job], limit_sec: float) -> list[Any]:
        """What functions give, each in a process of its own: `failed`, `code` and `memory` where that ends badly."""
        answers: list[Any] = [{"failed": NO_TIME, "code": EnvironmentFault.code}] * len(jobs)
        left, running = list(enumerate(jobs)), dict[Any, tuple[int, Child, float]]()
        try:
            while (left and not self.late()) or running:
                while left and len(running) < self.jobs and not self.late():
                    number, (function, arguments) = left.pop(0)
                    child = Child(self.log, called, self.one_thread, function, arguments)
                    self.count += function is run_trial
                    left_sec = self.until - time.monotonic() + GRACE_SEC
                    running[child.pipe] = number, child, clock() + min(limit_sec, left_sec)
                self.waiting()
                ready = wait(list(running), timeout=0.2)
                for pipe in [p for p in running if p in ready or clock() > running[p][2]]:
                    number, child, _ = running.pop(pipe)
                    late = {"failed": f"took over {limit_sec:.0f} s", "code": EnvironmentFault.code}
                    answers[number] = child.answer() if pipe in ready else late
                    child.stop()
        finally:
            for _, child, _ in running.values():
                child.stop()
        return answers


def called(pipe: Any, one_thread: bool, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1 if one_thread else torch.get_num_threads())
    return function(*arguments)


def run_trial(subject: Subject, trial: Trial, watches: Make, most_sec: float, one_thread: bool) -> Probe:
    torch.set_num_threads(1 if one_thread else torch.get_num_threads())
    recorder, watching = Recorder(most_sec, trial.steps), list(watches())
    trainer, model, fit = subject.made(trial, [recorder, *watching])
    torch.set_num_threads(1 if one_thread else torch.get_num_threads())  # the config may have set it
    failed: dict[str, Any] = {}
    try:
        eager = torch.compiler.set_stance("force_eager" if watching else "default")  # what is watched gives no graph
        with warnings.catch_warnings(), eager, subject.faults(trainer, fit):
            warnings.filterwarnings("ignore", message="Using a target size")  # a check tells of it
            trainer.fit(model, **fit)
    except Exception as e:
        failed = failure(e)
    probe = recorder.whole()
    for name, value in failed.items():
        setattr(probe, name, value)
    for watch in watching:
        try:
            probe.findings += watch.found(trainer, model)
            probe.measured[watch.name or type(watch).__name__] = watch.measured()
        except Exception as e:  # one check's failure is not that of the others
            traceback.print_exc()
            probe.unknown.append((watch.name or type(watch).__name__, f"{type(e).__name__}: {str(e)[:200]}"))
    return probe
