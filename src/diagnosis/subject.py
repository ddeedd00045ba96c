"""What is examined: a config, or any LightningModule with its loaders. It makes short trainings of itself."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from src.config.build import Experiment
from src.config.request import Request, merge
from src.data.loader import Arrays
from src.diagnosis.finding import Overlay
from src.run.faults import faults_of
from src.tuning.trial import BRIEF

VAL_SAMPLES = 2000  # of which a short training is judged
LOADED, LOADED_BYTES = 4000, 2**27  # samples of a module's loaders that are looked at, and the most that they take
OURS = ("Checkpoints", "Pictures", "ThrottledProgress", "Throughput")  # callbacks that write, or tell, what is no trial


@dataclass(frozen=True)
class Short:
    """A short training.

    Args:
        overlay: of the config; of a module `{"lr_times": 10.0}`, and `trainer`.
        steps: of the optimizer, by which its schedule goes.
        validations: how often it is measured, at even distances; the last time at its end.
        untrained: measure it before the first step, too.
    """

    overlay: Overlay = field(default_factory=dict)
    steps: int = 40
    seed: int = 0
    validations: int = 1
    untrained: bool = False


class Subject(Protocol):
    config: dict[str, Any]  # empty for a module

    def made(self, short: Short, callbacks: Sequence[Callback]) -> tuple[Trainer, LightningModule, dict[str, Any]]:
        """The objects of a short training, and what its fit gets besides the model."""

    def faults(self, trainer: Trainer, fit: dict[str, Any]) -> Any:
        """A context in which what goes wrong is a known error, where it can be."""

    def data(self) -> Any:
        """A data module that is set up, or what has its `splits`; None where samples cannot be told apart."""


class OfConfig:
    def __init__(self, request: Request) -> None:
        self.request, self.config = request, request.config

    def made(self, short: Short, callbacks: Sequence[Callback]) -> tuple[Trainer, LightningModule, dict[str, Any]]:
        config = merge(copy.deepcopy(self.config), short.overlay)
        brief = {**BRIEF, "max_steps": short.steps, "enable_progress_bar": False}
        config = merge(config, {"trainer": brief, "seed_everything": short.seed})
        experiment = Experiment(replace(self.request, config=config))
        experiment.build(logger=False)
        trainer, data = experiment.trainer, experiment.datamodule
        trainer.logger = DummyLogger()  # which takes all that callbacks log
        trainer.callbacks = [*(c for c in trainer.callbacks if type(c).__name__ not in OURS), *callbacks]
        if short.validations:
            trainer.limit_val_batches = math.ceil(VAL_SAMPLES / data.micro_batch_size)
            validate(trainer, short)
        data.prepare_data()
        return trainer, experiment.model, {"datamodule": data}

    def faults(self, trainer: Trainer, fit: dict[str, Any]) -> Any:
        nowhere: Any = SimpleNamespace(path=Path(), checkpoints=Path(), first_step=0)
        return faults_of(trainer, fit["datamodule"], nowhere)

    def data(self) -> Any:
        data = self.made(Short(steps=1, validations=0), [])[2]["datamodule"]
        data.setup("fit")
        return data


class OfModule:
    """Any LightningModule, as its own code trains it; of it a copy is trained.

    Args:
        trainer: arguments of its Trainer, but for what is short here, or writes.
        loaders: for `Trainer.fit`: `train_dataloaders` and `val_dataloaders`, or `datamodule`.
    """

    def __init__(self, model: LightningModule, trainer: dict[str, Any] | None = None, **loaders: Any) -> None:
        self.model, self.trainer, self.loaders, self.config = model, trainer or {}, loaders, dict[str, Any]()

    def made(self, short: Short, callbacks: Sequence[Callback]) -> tuple[Trainer, LightningModule, dict[str, Any]]:
        seed_everything(short.seed, verbose=False)
        own = {**copy.deepcopy(self.trainer), **short.overlay.get("trainer", {})}
        brief = BRIEF | {"max_steps": short.steps, "max_epochs": max(short.steps, own.get("max_epochs") or 0)}
        brief |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": DummyLogger()}
        with quiet():
            trainer: Any = Trainer(**own | brief)
        kept = [one for one in trainer.callbacks if not isinstance(one, (Checkpoint, ModelSummary, ProgressBar))]
        trainer.callbacks = [*kept, *callbacks, Rate(short.overlay.get("lr_times", 1.0))]
        if short.validations:
            trainer.limit_val_batches = own.get("limit_val_batches") or 1.0
            validate(trainer, short)
        return trainer, copy.deepcopy(self.model), dict(self.loaders)

    def faults(self, trainer: Trainer, fit: dict[str, Any]) -> Any:
        return nullcontext()

    def data(self) -> Any:
        """The first samples of the loaders, where a batch is (x, targets), or a dict that has these names."""
        whole = self.loaders.get("datamodule")
        if whole is not None:
            whole.prepare_data()
            whole.setup("fit")
        splits = {}
        for split in ("train", "val"):
            loader = getattr(whole, f"{split}_dataloader")() if whole else self.loaders.get(f"{split}_dataloaders")
            splits[split] = first_samples(loader)
        same: dict[str, Any] = {"on_after_batch_transfer": lambda batch, _: batch, "epoch_order": None}
        return SimpleNamespace(splits=splits, **same) if all(splits.values()) else None


def first_samples(loader: Any) -> Arrays | None:
    """Of a loader; None where there is none, or its batches are of another kind."""
    found: list[tuple[Tensor, Tensor]] = []
    for batch in loader or ():
        pair = [batch.get(name) for name in ("x", "targets")] if isinstance(batch, dict) else batch
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(t, Tensor) for t in pair):
            return None
        found.append((pair[0], pair[1]))
        if sum(len(y) for _, y in found) >= LOADED or sum(x.nbytes for x, _ in found) >= LOADED_BYTES:
            break
    return Arrays(*map(torch.cat, zip(*found, strict=True))) if found else None


class Rate(Callback):
    """Multiplies the learning rate, also where schedules set it."""

    def __init__(self, times: float) -> None:
        self.times = times

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group |= {n: group[n] * self.times for n in ("lr", "initial_lr", "max_lr", "min_lr") if n in group}
        for how in trainer.lr_scheduler_configs:
            for name in ("base_lrs", "max_lrs"):
                if hasattr(how.scheduler, name):
                    setattr(how.scheduler, name, [rate * self.times for rate in getattr(how.scheduler, name)])


def validate(trainer: Trainer, short: Short) -> None:
    """Have it validate at even distances. Lightning counts micro-batches."""
    trainer.check_val_every_n_epoch = None
    trainer.num_sanity_val_steps = math.inf if short.untrained else 0
    every = max(1, short.steps // short.validations)
    trainer.val_check_interval = every * trainer.accumulate_grad_batches


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
