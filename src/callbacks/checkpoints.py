import math
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from src.callbacks.ema import EMA
from src.callbacks.resumption import Resumption, complete
from src.data.loader import Loader
from src.run import checkpoint as files
from src.run.checkpoint import rng_state
from src.run.errors import ConfigError, EnvironmentFault, Stopped, nearest
from src.run.signals import Signals, requeued


class Checkpoints(Checkpoint):
    """Writes checkpoints from which a run goes on bit for bit. Lightning's ModelCheckpoint cannot: it saves before the
    loops have counted the step, without the random generators, and not on a signal.

    All are taken at the same kind of moment: between two optimizer steps, after the validation that belongs to the
    first, before the second begins. There the whole state is: weights, optimizer, schedule, callbacks, the loops'
    counters, the log's open window, and the random generators, which are put back at the very same moment. Order and
    augmentation need no state.

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
        self.in_validation = False  # whether the checkpoint is of the moment before a validation
        self.rng_before_validation: dict[str, Any] = {}
        self.saved_step = -1
        self.resumption, self.signals = Resumption(), Signals()
        self.folder = Path()

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best": self.best, "by": [self.monitor, self.mode]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        exists = state["best"] is None or (self.folder / state["best"]).exists()  # else it began with a lone checkpoint
        if exists and state.get("by", [self.monitor, self.mode]) == [self.monitor, self.mode]:  # else it is a fork
            self.best_score, self.best = state["best_score"], state["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        rng = self.rng_before_validation if self.in_validation else rng_state()
        complete(checkpoint, trainer, rng, self.in_validation, self.trained)
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.resumption.load(trainer, checkpoint)
        self.saved_step = -1 if checkpoint["in_validation"] else checkpoint["global_step"]

    # The moments of a run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if stage == "test":
            self.resumption.put_back_counts(trainer)  # where nothing was left to train
        self.t0 = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_whole_steps(trainer)
        self.folder.mkdir(exist_ok=True)
        self.signals.watch(trainer)
        if isinstance(loader := trainer.train_dataloader, Loader):
            loader.while_waiting = partial(self.while_waiting, trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.resumption.put_back(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            if self.signals.overdue:
                self.stop_without_checkpoint(trainer, "step")
            return
        if signum := self.signal_to_answer(trainer):
            self.save_and_answer(trainer, signum)
        io_of(trainer).finish(wait=False)
        if self.improved or self.is_due(trainer):
            self.save(trainer, wait=False)

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
        if begun or trainer.world_size > 1 or self.resumption.state is not None:
            self.stop_without_checkpoint(trainer, "step")
        self.save_and_answer(trainer, self.signals.stop)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.score(trainer)  # finds a wrong name before training, not after the first epoch

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.resumption.put_back(trainer)
        self.rng_before_validation = rng_state()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Cut a long validation short: the checkpoint is of the moment before it, and going on repeats it."""
        if not self.signals.overdue or trainer.sanity_checking:
            return
        if trainer.world_size > 1:  # the others may have heard nothing, and wait
            self.stop_without_checkpoint(trainer, "validation")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                callback.on_validation_end(trainer, pl_module)  # the weights are training's again
        self.in_validation = True
        path = self.folder / f"step-{trainer.global_step:08d}-before-validation.ckpt"
        if files.damage(path, alone=False):  # else the run began with it, and a checkpoint never changes
            trainer.save_checkpoint(path)
        io_of(trainer).finish()
        self.answer(trainer, self.signals.stop, f"in the validation after {trainer.global_step} steps stopped by")

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
        self.signals.restore()  # before asking: what comes later ends the test at once
        if signum := self.signal_to_answer(trainer, now=True):
            self.answer(trainer, signum, "after training and before the test stopped by")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.restore()
        with suppress(EnvironmentFault):  # the first error is the one to tell
            io_of(trainer).finish()

    # When to save

    def score(self, trainer: Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            names = [name for name in metrics if name.startswith("val/")]
            hint = nearest(self.monitor, names) or f"; there are {', '.join(names)}"
            raise ConfigError(f"checkpoints.monitor: no metric {self.monitor}{hint}")
        return float(metrics[self.monitor])

    def is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if step in (0, self.saved_step):
            return False
        if self.every_n_steps and step % self.every_n_steps == 0:
            return True
        late = time.monotonic() - self.t0 > self.every_sec
        # Clocks differ, so one device decides for all, and seldom, because that is a message.
        return late if trainer.world_size == 1 else processes_talk(trainer) and trainer.strategy.broadcast(late)

    def save(self, trainer: Trainer, wait: bool = True) -> None:
        """Take a checkpoint now; whether to wait until it is on the disk, or to let a thread write it."""
        if trainer.global_step != self.saved_step:  # a checkpoint never changes
            path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
            if self.improved:
                self.best, self.improved = path.name, False
            self.saved_step, self.t0 = trainer.global_step, time.monotonic()
            trainer.save_checkpoint(path, storage_options=self.keep_last)
        if wait:
            io_of(trainer).finish()

    # Signals

    def signal_to_answer(self, trainer: Trainer, now: bool = False) -> int:
        """Its number, or 0. Where one of several processes got one, all answer; they ask each other when the log is
        written."""
        signum = self.signals.asked
        if trainer.world_size > 1:
            if not now and not processes_talk(trainer):
                return 0
            mine = torch.tensor(float(signum), device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(mine, reduce_op="max"))
        return signum

    def save_and_answer(self, trainer: Trainer, signum: int) -> None:
        self.save(trainer)
        self.answer(trainer, signum, f"after {trainer.global_step} steps stopped by")

    def answer(self, trainer: Trainer, signum: int, when: str) -> None:
        """A checkpoint has been written, because there was a signal."""
        name, self.signals.save = signal.Signals(signum).name, False
        if signum == self.signals.save_signal:
            if not self.signals.requeues or not trainer.strategy.broadcast(trainer.is_global_zero and requeued()):
                return
            name, signum = f"{name}; SLURM has the job in its queue again", signal.SIGTERM
        raise Stopped(f"{when} {name}; a checkpoint is written -> the same command goes on", signum)

    def stop_without_checkpoint(self, trainer: Trainer, within: str) -> NoReturn:
        name, last = signal.Signals(self.signals.stop).name, "from the last checkpoint, if there is one"
        text = f"in the {within} after {trainer.global_step} steps stopped by {name} -> the same command goes on {last}"
        raise Stopped(text, self.signals.stop)


def io_of(trainer: Trainer) -> files.VerifiedCheckpointIO:
    return trainer.strategy.checkpoint_io  # type: ignore[return-value]


def processes_talk(trainer: Trainer) -> bool:
    """Whether it is time for several processes to ask each other."""
    return trainer.global_step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]


def check_whole_steps(trainer: Trainer) -> None:
    """An epoch, and what is trained between two validations, are whole steps: a step on a part of its micro-batches
    would have a part of its gradient, and weights that are measured in the midst of one could not be saved.

    Raises:
        ConfigError: they are not.
    """
    step, limit, every = trainer.accumulate_grad_batches, trainer.limit_train_batches, trainer.val_check_batch
    if every is None and step > 1:
        raise ConfigError("trainer.val_check_interval: a time may come within a step -> give a number of micro-batches")
    limits = {
        "trainer.fast_dev_run": trainer.fast_dev_run,  # type: ignore[attr-defined]
        "trainer.overfit_batches": trainer.overfit_batches,  # type: ignore[attr-defined]
        "trainer.limit_train_batches": isinstance(limit, int) or limit < 1,  # 1 is one batch, 1.0 is all
        "the training loader of data": True,
    }
    epoch_key = next(key for key, limited in limits.items() if limited)
    for key, count in ((epoch_key, trainer.num_training_batches), ("trainer.val_check_interval", every)):
        if isinstance(count, int) and count % step:
            low = count // step * step
            valid = " or ".join(str(n) for n in (low, low + step) if n)
            raise ConfigError(f"{key}: it comes to {count} micro-batches, but a step has {step} -> take {valid}")
