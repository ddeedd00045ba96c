"""What is examined: a config, or any LightningModule with its loaders. It makes short trainings of itself."""

import copy
import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelSummary, ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from src.config.build import Experiment
from src.config.request import Request, merge
from src.diagnosis.finding import Overlay
from src.diagnosis.levers import Levers
from src.diagnosis.samples import at_random, batch_size_of, order_of, sample_sec, samples_of, split_off
from src.run.faults import faults_of
from src.tuning.trial import BRIEF, MANY

VAL_SAMPLES, VAL_SEC = 2000, 1.0  # of which a short training is judged; to read those of a module
LEFT_OUT = (Checkpoint, ModelSummary, ProgressBar)  # likewise of a module
OURS = ("Checkpoints", "Pictures", "ThrottledProgress", "Throughput")  # callbacks that write, or tell, what is no trial


@dataclass(frozen=True)
class Trial:
    """A short training.

    Args:
        overlay: of the config; of a module that of `Levers`, and `trainer`.
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
    config: dict[str, Any]  # of a module its `trainer` alone

    def made(self, trial: Trial, callbacks: Sequence[Callback]) -> tuple[Trainer, LightningModule, dict[str, Any]]:
        """The objects of a short training, and what its fit gets besides the model."""

    sample_sec: float  # what it takes to read a sample of val

    def faults(self, trainer: Trainer, fit: dict[str, Any]) -> Any:
        """A context in which what goes wrong is a known error, where it can be."""

    def data(self) -> Any:
        """A data module that is set up, or what has its `splits`; None where samples cannot be told apart."""


class ConfigSubject:
    def __init__(self, request: Request) -> None:
        self.request, self.config, self.sample_sec = request, request.config, 0.0

    def made(self, trial: Trial, callbacks: Sequence[Callback]) -> tuple[Trainer, LightningModule, dict[str, Any]]:
        config = merge(copy.deepcopy(self.config), trial.overlay)
        brief = {**BRIEF, "max_steps": trial.steps, "enable_progress_bar": False}
        config = merge(config, {"trainer": brief, "seed_everything": trial.seed})
        experiment = Experiment(replace(self.request, config=config))
        experiment.build(logger=False)
        trainer, data = experiment.trainer, experiment.datamodule
        trainer.logger = DummyLogger()  # which takes all that callbacks log
        trainer.callbacks = [*(c for c in trainer.callbacks if type(c).__name__ not in OURS), *callbacks]
        if trial.validations:
            trainer.limit_val_batches = math.ceil(VAL_SAMPLES / data.micro_batch_size)
            validate(trainer, trial)
        data.prepare_data()
        return trainer, experiment.model, {"datamodule": data}

    def faults(self, trainer: Trainer, fit: dict[str, Any]) -> Any:
        nowhere: Any = SimpleNamespace(path=Path(), checkpoints=Path(), first_step=0)
        return faults_of(trainer, fit["datamodule"], nowhere)

    def data(self) -> Any:
        data = self.made(Trial(steps=1, validations=0), [])[2]["datamodule"]
        data.setup("fit")
        return data


class NullLogger(DummyLogger):
    """Takes all that is logged, and has a folder that exists, for those who ask for one."""

    log_dir = save_dir = gettempdir()


class ModuleSubject:
    """Any LightningModule, as its own code trains it, in a process of its own each time.

    Args:
        trainer: arguments of its Trainer, but for what is short here, or writes.
        loaders: for `Trainer.fit`: `train_dataloaders` and `val_dataloaders`, or `datamodule`.
    """

    def __init__(self, model: LightningModule, trainer: dict[str, Any] | None = None, **loaders: Any) -> None:
        self.model, self.trainer, self.loaders, self.sample_sec = model, trainer or {}, loaders, 0.0
        self.config: dict[str, Any] = {"trainer": self.trainer}

    def made(self, trial: Trial, callbacks: Sequence[Callback]) -> tuple[Trainer, LightningModule, dict[str, Any]]:
        seed_everything(trial.seed, verbose=False)
        own = {**self.trainer, **trial.overlay.get("trainer", {})}
        # Of several optimizers Lightning counts each step, and of some none: the probe ends it then.
        counts = self.model.automatic_optimization
        epochs = max(trial.steps if counts else MANY, own.get("max_epochs") or 0)
        brief = BRIEF | {"max_steps": trial.steps if counts else -1, "max_epochs": epochs}
        brief |= {"min_steps": None, "min_epochs": None}
        brief |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": NullLogger()}
        with warnings.catch_warnings(action="ignore"):
            trainer: Any = Trainer(**own | brief)
        kept = [one for one in trainer.callbacks if not isinstance(one, LEFT_OUT)]
        for one in kept:
            if isinstance(one, EarlyStopping):  # whose numbers the module may ask for
                one.patience, one.strict = MANY, False
        trainer.callbacks = [*kept, *callbacks, Levers(trial.overlay)]
        fit, limit = dict(self.loaders), own.get("limit_val_batches")
        if trial.validations and limit != 0:
            val = fit.get("val_dataloaders")  # which may be sorted
            some = at_random(val, self.val_samples, batch_size_of(val))
            fit |= {"val_dataloaders": some} if some else {}
            trainer.callbacks.append(LimitVal(self, limit if isinstance(limit, int) else math.inf))
            validate(trainer, trial)
        return trainer, self.model, fit

    @property
    def val_samples(self) -> int:
        return round(min(VAL_SAMPLES, VAL_SEC / max(self.sample_sec, 1e-9))) or 1

    def faults(self, trainer: Trainer, fit: dict[str, Any]) -> Any:
        return nullcontext()

    def loader(self, split: str) -> Any:
        """The first one, where there are several; None where there is none."""
        of: Any = self.loaders.get("datamodule")
        of = self.model if of is None and not self.loaders else of
        try:
            found = self.loaders.get(f"{split}_dataloaders") if of is None else getattr(of, f"{split}_dataloader")()
        except MisconfigurationException:  # it has no such method
            return None
        several = isinstance(found, (list, tuple)) and any(isinstance(one, DataLoader) for one in found)
        return next(iter(found)) if several else found  # type: ignore[arg-type]

    def data(self) -> Any:
        """Samples of the loaders, where a batch is (x, targets), or a dict in which a name says which is which;
        `ordered`: targets in the order of an epoch. Part of train stands for val that is not."""
        self.set_up()
        train, val = self.loader("train"), self.loader("val")
        ordered = order_of(train)
        splits: Any = {"train": samples_of(train), "val": samples_of(val)}
        if val is None and ordered is not None and splits["train"]:
            splits = split_off(splits["train"])
        same: dict[str, Any] = {"on_after_batch_transfer": lambda batch, _: batch, "epoch_order": None}
        known = all(arrays is not None for arrays in splits.values())
        return SimpleNamespace(splits=splits, ordered=ordered, **same) if known else None

    def set_up(self) -> None:
        for of in (self.loaders.get("datamodule"), None if self.loaders else self.model):
            if of is not None:
                of.prepare_data()
                of.setup("fit")


def read_sec(subject: ModuleSubject) -> float:
    """What a sample of a module's val takes."""
    subject.set_up()
    return sample_sec(subject.loader("val"))


class LimitVal(Callback):
    """Has validations take as many samples of a module as are meant."""

    def __init__(self, subject: ModuleSubject, most: float) -> None:
        self.subject, self.most = subject, most

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        size = batch_size_of(self.subject.loader("val"))
        trainer.limit_val_batches = int(min(math.ceil(self.subject.val_samples / size), self.most))


def validate(trainer: Trainer, trial: Trial) -> None:
    """Have it validate at even distances. Lightning counts micro-batches."""
    trainer.check_val_every_n_epoch = None
    trainer.num_sanity_val_steps = math.inf if trial.untrained else 0
    every = max(1, trial.steps // trial.validations)
    trainer.val_check_interval = every * trainer.accumulate_grad_batches
