import math
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from lightning.pytorch.trainer.states import TrainerFn

from src.data.loader import Loader
from src.run.checkpoint import VerifiedCheckpointIO, gathered
from src.run.errors import ConfigError, EnvironmentFault, Stopped, nearest
from src.run.folder import LAYOUT, RunFolder
from src.run.private import set_steps_logged, steps_logged
from src.run.rng import rng_state, set_rng_state
from src.run.signals import Signals, requeued


class Checkpoints(Checkpoint):
    """Writes checkpoints from which a run goes on bit for bit. Lightning's ModelCheckpoint cannot: it saves before the
    loops have counted the step, without the random generators, and not on a signal.

    All are taken between two optimizer steps, after the validation that belongs to the first; what Lightning does not
    restore is put back at the very same moment. Order and augmentation need no state.

    SIGTERM and SIGINT: write a checkpoint and stop. SIGUSR1: write one and go on; in a SLURM job that may be requeued,
    requeue it and stop.

    Args:
        monitor: the metric that decides which checkpoint is the best; NaN and infinity never are.
        mode: whether the least or the greatest is best.
        every_sec: seconds between checkpoints of a run that does not get better.
        every_n_steps: optimizer steps between checkpoints; by default time alone decides.
        keep_last: how many of the newest to keep, besides the best.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_sec: float = 60.0,
        every_n_steps: int | None = None,
        keep_last: int = 2,
    ) -> None:
        if keep_last < 1 or (every_n_steps or 1) < 1:
            raise ConfigError("checkpoints: keep_last and every_n_steps must be at least 1")
        self.monitor, self.mode, self.every_sec = monitor, mode, every_sec
        self.every_n_steps, self.keep_last = every_n_steps, keep_last
        self.best_score: float | None = None
        self.best: str | None = None
        self.improved = False  # whether the weights of this moment are the best so far, and not saved yet
        self.trained = False  # whether training came to its end
        self.stops = False  # whether training is to stop at the end of the step
        self.rng_before_validation: dict[str, Any] = {}
        self.saved = ""  # the name of the newest checkpoint
        self.restored: dict[str, Any] | None = None  # of the checkpoint that the run begins with, until it is put back
        self.signals, self.folder = Signals(), Path()

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best": self.best, "by": [self.monitor, self.mode]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        exists = state["best"] is None or (self.folder / state["best"]).exists()  # else it began with a lone checkpoint
        if exists and state["by"] == [self.monitor, self.mode]:  # else it is a fork
            self.best_score, self.best = state["best_score"], state["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out."""
        set_counters(checkpoint["loops"]["fit_loop"], trainer.validating)
        metrics = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith("perf/")}
        checkpoint |= {
            "rng": gathered(self.rng_before_validation if trainer.validating else rng_state(), trainer),
            "metrics": {name: value.detach().cpu() for name, value in metrics.items()},
            "steps_logged": steps_logged(trainer),
            "should_stop": trainer.should_stop,
            "in_validation": trainer.validating,
            "trained": limits(trainer) if self.trained else None,
            "best": self.best,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = file_name(checkpoint["global_step"], checkpoint["in_validation"])
        self.restored = {name: checkpoint[name] for name in ("rng", "metrics", "steps_logged")}
        self.restored["should_stop"] = checkpoint["should_stop"] and not checkpoint["trained"]
        if trainer.state.fn == TrainerFn.FITTING:
            # Before all other callbacks; Lightning moves the one that saves checkpoints to the end.
            hooks = dict.fromkeys(("on_train_batch_start", "on_validation_start"), self.put_back_counts)
            trainer.callbacks = [LambdaCallback(**hooks), *trainer.callbacks]  # type: ignore[attr-defined]
            if checkpoint["trained"] == limits(trainer):
                trainer.should_stop = True  # also where an early stop ended training before max_epochs
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key, {})
            if "patience" in state:  # Lightning would take it from the checkpoint, whatever a fork's config says
                state["patience"] = callback.patience

    def put_back_counts(self, trainer: Trainer, *_: Any) -> None:
        """What callbacks that come before this one look at, too."""
        if self.restored is not None:
            trainer.callback_metrics.update(self.restored["metrics"])
            set_steps_logged(trainer, self.restored["steps_logged"])

    def put_back(self, trainer: Trainer) -> None:
        if self.restored is None:
            return
        states = self.restored["rng"]
        set_rng_state(states[trainer.global_rank % len(states)])
        # An early stop may wait for min_epochs; plateau schedules may look at the last validation.
        trainer.should_stop = self.restored["should_stop"]
        trainer.fit_loop.restarting = False  # as long as it is true, plateau schedules sleep until the epoch's end
        self.restored = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if stage == "test":
            self.put_back_counts(trainer)  # where nothing was left to train
        self.t0 = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_whole_steps(trainer)
        if trainer.global_rank and self.restored is None:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)  # dropout is not to be alike on all devices
        self.folder.mkdir(exist_ok=True)
        self.signals.watch(trainer)
        if isinstance(loader := trainer.train_dataloader, Loader):
            loader.while_waiting = partial(self.while_waiting, trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.put_back(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            if self.signals.overdue:
                self.answer(trainer, self.signals.stop, "in the step ", saves=False)
            return
        if signum := self.signal_to_answer(trainer):
            self.answer(trainer, signum)
        io_of(trainer).finish(wait=False)
        if self.improved or self.is_due(trainer):
            self.save(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Whatever stops training, such as `trainer.max_time`: the step that has begun is ended first."""
        stops = self.stops or trainer.should_stop
        within_step = bool((trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches)
        trainer.should_stop, self.stops = stops and not within_step, stops and within_step

    def while_waiting(self, trainer: Trainer) -> None:
        """A worker gives nothing, and a signal waits for an answer."""
        if not self.signals.overdue:
            return
        begun = trainer.fit_loop.epoch_loop.batch_progress.current.completed % trainer.accumulate_grad_batches
        saves = not begun and trainer.world_size == 1 and self.restored is None
        self.answer(trainer, self.signals.stop, "" if saves else "in the step ", saves)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.score(trainer)  # finds a wrong name before training, not after the first epoch
        known = {None, *trainer.callback_metrics}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor: Any = getattr(callback, "monitor", None)
            if monitor not in known and not monitor.startswith(("train/", "optim/", "perf/")):
                hint = nearest(monitor, trainer.callback_metrics)
                raise ConfigError(f"trainer.callbacks: {type(callback).__name__}: no metric {monitor}{hint}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.put_back(trainer)
        self.rng_before_validation = rng_state()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Cut a long validation short: the checkpoint is of the moment before it, and going on repeats it."""
        if self.signals.overdue and not trainer.sanity_checking:
            saves = trainer.world_size == 1  # of several processes the others may have heard nothing, and wait
            self.answer(trainer, self.signals.stop, "in the validation ", saves)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = math.nan if trainer.sanity_checking else self.score(trainer)
        sign = 1 if self.mode == "min" else -1
        if math.isfinite(score) and (self.best_score is None or sign * score < sign * self.best_score):
            self.best_score, self.improved = score, True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True
        if self.best is None and self.best_score is None:
            self.improved = True  # nothing was validated: the last is the best
        self.save(trainer)
        io_of(trainer).finish()
        self.signals.restore()  # before asking: what comes later ends the test at once
        if signum := self.signal_to_answer(trainer):
            self.answer(trainer, signum, "before the test ")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.restore()
        with suppress(EnvironmentFault):  # the first error is the one to tell
            io_of(trainer).finish()

    def score(self, trainer: Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            names = [name for name in metrics if name.startswith("val/")]
            hint = nearest(self.monitor, names) or f"; there are {', '.join(names)}"
            raise ConfigError(f"checkpoints.monitor: no metric {self.monitor}{hint}")
        return float(metrics[self.monitor])

    def is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if step == 0 or self.saved == file_name(step):
            return False
        if self.every_n_steps and step % self.every_n_steps == 0:
            return True
        late = time.monotonic() - self.t0 > self.every_sec
        # Clocks differ, so one device decides for all, and seldom, because that is a message.
        return late if trainer.world_size == 1 else self.may_ask(trainer) and trainer.strategy.broadcast(late)

    def may_ask(self, trainer: Trainer) -> bool:
        """Whether it is time for several processes to ask each other."""
        return self.trained or trainer.global_step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]

    def save(self, trainer: Trainer) -> None:
        """Take a checkpoint; a thread writes it."""
        name = file_name(trainer.global_step, trainer.validating)
        if name == self.saved:  # a checkpoint never changes
            return
        if self.improved:
            self.best, self.improved = name, False
        self.saved, self.t0 = name, time.monotonic()
        trainer.save_checkpoint(self.folder / name, storage_options=self.keep_last)

    def signal_to_answer(self, trainer: Trainer) -> int:
        """Its number, or 0. Where one of several processes got one, all answer."""
        if trainer.world_size == 1:
            return self.signals.asked
        if not self.may_ask(trainer):
            return 0
        asked = torch.tensor(float(self.signals.asked), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(asked, reduce_op="max"))

    def answer(self, trainer: Trainer, signum: int, within: str = "", saves: bool = True) -> None:
        """Save where that is possible now, then do what the signal asks for."""
        name, saved, last = signal.Signals(signum).name, "", " from the last checkpoint, if there is one"
        if saves:
            self.save(trainer)
            io_of(trainer).finish()
            self.signals.save, saved, last = False, "; a checkpoint is written", ""
        if signum == self.signals.save_signal:
            if not self.signals.requeues or not trainer.strategy.broadcast(trainer.is_global_zero and requeued()):
                return
            name, signum = f"{name}; SLURM has the job in its queue again", signal.SIGTERM
        raise Stopped(
            f"{within}after {trainer.global_step} steps stopped by {name}{saved} -> the same command goes on{last}",
            signum,
        )


def file_name(step: int, in_validation: bool = False) -> str:
    return f"step-{step:08d}{'-before-validation' if in_validation else ''}.ckpt"


def io_of(trainer: Trainer) -> VerifiedCheckpointIO:
    return trainer.strategy.checkpoint_io  # type: ignore[return-value]


def limits(trainer: Trainer) -> dict[str, Any]:
    """What says how long to train: a run that has come to its end has more to do where a fork changes that."""
    config = RunFolder(Path(trainer.default_root_dir)).config()["trainer"]
    return {name: value for name, value in config.items() if f"trainer.{name}" not in LAYOUT}


def set_counters(loops: dict[str, Any], in_validation: bool) -> None:
    """Set the counters of Lightning's loops to the moment between two steps, or before the validation that runs now."""
    progress = loops["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count |= dict.fromkeys(("ready", "started", "processed"), count["completed"])  # the next batch is not yet begun
    progress["is_last_batch"] = False
    if in_validation:  # count as Lightning does when the first batch has begun: it then repeats the validation
        count = loops["epoch_loop.val_loop.batch_progress"]
        completed = count["total"]["completed"]
        count["total"] |= {"ready": completed + 1, "started": completed + 1, "processed": completed}
        count["current"] |= dict.fromkeys(count["current"], 0)


def check_whole_steps(trainer: Trainer) -> None:
    """An epoch, and what is trained between two validations, are whole steps: a step on a part of its micro-batches
    would have a part of its gradient, and weights that are measured in the midst of one could not be saved.
    """
    step, every = trainer.accumulate_grad_batches, trainer.val_check_batch
    if every is None and step > 1:
        raise ConfigError("trainer.val_check_interval: a time may come within a step -> give a number of micro-batches")
    limit = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"  # type: ignore[attr-defined]
    for key, count in ((limit, trainer.num_training_batches), ("val_check_interval", every)):
        if isinstance(count, int) and count % step:
            low = count // step * step
            text = f"trainer.{key}: it comes to {count} micro-batches, but a step has {step}"
            raise ConfigError(f"{text} -> take {' or '.join(str(n) for n in (low, low + step) if n)}")
