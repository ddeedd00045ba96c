import math
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from lightning.pytorch.trainer.states import TrainerFn

from src.callbacks.ema import EMA
from src.data.loader import Loader
from src.run import checkpoint as files
from src.run.errors import ConfigError, EnvironmentFault, Stopped, nearest
from src.run.folder import RunFolder
from src.run.rng import gathered, rng_state, set_rng_state
from src.run.signals import Signals, requeued


class Checkpoints(Checkpoint):
    """Writes checkpoints from which a run goes on bit for bit.

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
        self.trained = False  # whether training came to its end
        self.in_validation = False  # whether the checkpoint is of the moment before a validation
        self.rng_before: dict[str, Any] = {}
        self.better = False  # whether the weights of this moment are the best so far, and not saved yet
        self.saved_step = -1
        self.resumed: dict[str, Any] | None = None
        self.signals = Signals()
        self.folder = Path()

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best": self.best, "by": [self.monitor, self.mode]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        there = state["best"] is None or (self.folder / state["best"]).exists()  # else it began with a lone checkpoint
        if there and state.get("by", [self.monitor, self.mode]) == [self.monitor, self.mode]:  # else it is a fork
            self.best_score, self.best = state["best_score"], state["best"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if stage == "test":
            self.put_back_counts(trainer)  # where nothing was left to train
        self.t0 = time.monotonic()

    # When to save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        every, step = trainer.val_check_batch, trainer.accumulate_grad_batches
        if isinstance(every, int) and every % step and every != trainer.num_training_batches:
            raise ConfigError(
                f"trainer.val_check_interval: it comes to {every} micro-batches, but a step has {step}, "
                "and the weights that are measured are saved between steps -> take a multiple"
            )
        self.signals.watch(trainer)
        if isinstance(loader := trainer.train_dataloader, Loader):
            loader.while_waiting = partial(self.while_waiting, trainer)

    def answer(self, trainer: Trainer, signum: int, done: str) -> None:
        """A checkpoint has been written, because there was a signal."""
        name, self.signals.save = signal.Signals(signum).name, False
        if signum == self.signals.save_signal:
            if not self.signals.requeues or not trainer.strategy.broadcast(trainer.is_global_zero and requeued()):
                return
            name, signum = f"{name}; SLURM has the job in its queue again", signal.SIGTERM
        raise Stopped(f"{done} {name}; a checkpoint is written -> the same command goes on", signum)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumed is not None and not trainer.sanity_checking:
            self.put_back(trainer)
        self.rng_before = rng_state()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Cut a long validation short: the checkpoint is of the moment before it, and going on repeats it."""
        if not self.signals.overdue or trainer.sanity_checking:
            return
        if trainer.world_size > 1:  # the others may have heard nothing, and wait
            self.give_up(trainer, "validation")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                callback.on_validation_end(trainer, pl_module)  # the weights are training's again
        self.in_validation = True
        io_of(trainer).finish()
        path = self.folder / f"step-{trainer.global_step:08d}-before-validation.ckpt"
        if files.damage(path, alone=False):  # else the run began with it, and a checkpoint never changes
            trainer.save_checkpoint(path)
            io_of(trainer).finish()
        self.answer(trainer, self.signals.stop, f"in the validation after {trainer.global_step} steps stopped by")

    def give_up(self, trainer: Trainer, within: str) -> NoReturn:
        name, last = signal.Signals(self.signals.stop).name, "from the last checkpoint, if there is one"
        text = f"in the {within} after {trainer.global_step} steps stopped by {name} -> the same command goes on {last}"
        raise Stopped(text, self.signals.stop)

    def while_waiting(self, trainer: Trainer) -> None:
        """A worker gives nothing, and a signal waits for an answer."""
        if not self.signals.overdue:
            return
        begun = trainer.fit_loop.epoch_loop.batch_progress.current.completed % trainer.accumulate_grad_batches
        if begun or trainer.world_size > 1 or self.resumed is not None:
            self.give_up(trainer, "step")
        self.answer_with_checkpoint(trainer, self.signals.stop)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.score(trainer)  # finds a wrong name before training, not after the first epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = math.nan if trainer.sanity_checking else self.score(trainer)
        sign = 1 if self.mode == "min" else -1
        if math.isfinite(score) and (self.best_score is None or sign * score < sign * self.best_score):
            self.best_score, self.better = score, True

    def score(self, trainer: Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            names = [name for name in metrics if name.startswith("val/")]
            hint = nearest(self.monitor, names) or f"; there are {', '.join(names)}"
            raise ConfigError(f"checkpoints.monitor: no metric {self.monitor}{hint}")
        return float(metrics[self.monitor])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.resumed is not None:
            self.put_back(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            if self.signals.overdue:
                self.give_up(trainer, "step")
            return
        if signum := self.asked(trainer):
            self.answer_with_checkpoint(trainer, signum)
        io_of(trainer).check()
        if self.better or self.due(trainer):
            self.save(trainer, wait=False)

    def answer_with_checkpoint(self, trainer: Trainer, signum: int) -> None:
        self.save(trainer)
        self.answer(trainer, signum, f"after {trainer.global_step} steps stopped by")

    def asked(self, trainer: Trainer, now: bool = False) -> int:
        """The signal to answer, or 0. Where one of several processes got it, all answer; they ask each other when the
        log is written."""
        signum = self.signals.asked
        if trainer.world_size > 1:
            if not now and not asks(trainer):
                return 0
            own = torch.tensor(float(signum), device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(own, reduce_op="max"))
        return signum

    def due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if step in (0, self.saved_step):
            return False
        if self.every_n_steps and step % self.every_n_steps == 0:
            return True
        late = time.monotonic() - self.t0 > self.every_sec
        # Clocks differ, so one device decides for all, and seldom, because that is a message.
        return late if trainer.world_size == 1 else asks(trainer) and trainer.strategy.broadcast(late)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True
        if self.best is None and self.best_score is None:
            self.better = True  # nothing was validated: the last is the best
        self.save(trainer)
        self.signals.restore()  # before asking: what comes later ends the test at once
        if signum := self.asked(trainer, now=True):
            self.answer(trainer, signum, "after training and before the test stopped by")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.restore()
        with suppress(EnvironmentFault):  # the first error is the one to tell
            io_of(trainer).finish()

    def save(self, trainer: Trainer, wait: bool = True) -> None:
        """Take a checkpoint now; whether to wait until it is on the disk, or to let a thread write it."""
        if trainer.global_step != self.saved_step:  # a checkpoint never changes
            path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
            if self.better:
                self.best, self.better = path.name, False
            self.saved_step, self.t0 = trainer.global_step, time.monotonic()
            trainer.save_checkpoint(path, storage_options=self.keep_last)
        if wait:
            io_of(trainer).finish()

    # What a checkpoint holds besides what Lightning puts in

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            for name in ("ready", "started", "processed"):
                count[name] = count["completed"]  # the batch of this moment is not yet begun
        progress["is_last_batch"] = False
        if self.in_validation:
            self.before_validation(checkpoint)
        checkpoint["trained"] = limits(trainer) if self.trained else None
        checkpoint["best"] = self.best
        checkpoint["in_validation"] = self.in_validation
        checkpoint["should_stop"] = trainer.should_stop
        lasting = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith("perf/")}
        checkpoint["metrics"] = {name: value.detach().cpu() for name, value in lasting.items()}
        checkpoint["steps_logged"] = trainer.fit_loop.epoch_loop._batches_that_stepped
        checkpoint["rng"] = gathered(self.rng_before if self.in_validation else rng_state(), trainer)

    def before_validation(self, checkpoint: dict[str, Any]) -> None:
        """Count as Lightning does when the first batch of a validation has begun: it then repeats that validation."""
        count = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        done = count["total"]["completed"]
        count["total"] |= {"ready": done + 1, "started": done + 1, "processed": done}
        count["current"] |= dict.fromkeys(count["current"], 0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.resumed = {name: checkpoint[name] for name in ("rng", "metrics", "steps_logged")}
        self.resumed["should_stop"] = checkpoint["should_stop"] and not checkpoint["trained"]
        self.saved_step = -1 if checkpoint["in_validation"] else checkpoint["global_step"]
        if trainer.state.fn == TrainerFn.FITTING:
            # Lightning moves this callback to the end.
            first = LambdaCallback(on_train_batch_start=self.put_back_counts, on_validation_start=self.put_back_counts)
            trainer.callbacks = [first, *trainer.callbacks]  # type: ignore[attr-defined]
            if checkpoint["trained"] == limits(trainer):
                trainer.should_stop = True  # also where an early stop ended training before max_epochs
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key, {})
            if "patience" in state:  # Lightning would take it from there, and a fork's own would say nothing
                state["patience"] = callback.patience
        # Lightning adds one after a restart, because it saves before it counts.
        checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = (
            checkpoint["steps_logged"] - 1
        )

    def put_back_counts(self, trainer: Trainer, *_: Any) -> None:
        """What callbacks that come before this one look at, too."""
        if self.resumed is not None:
            trainer.callback_metrics.update(self.resumed["metrics"])
            # Lightning sometimes counts one step too many after a restart.
            trainer.fit_loop.epoch_loop._batches_that_stepped = self.resumed["steps_logged"]

    def put_back(self, trainer: Trainer) -> None:
        """What Lightning does not restore, or counts on from a wrong number."""
        assert self.resumed is not None
        states = self.resumed["rng"]
        set_rng_state(states[trainer.global_rank % len(states)])
        # An early stop may wait for min_epochs; plateau schedules may look at the last validation.
        trainer.should_stop = self.resumed["should_stop"]
        trainer.fit_loop.restarting = False  # as long as it is true, plateau schedules sleep until the epoch's end
        self.resumed = None


def io_of(trainer: Trainer) -> files.VerifiedCheckpointIO:
    return trainer.strategy.checkpoint_io  # type: ignore[return-value]


def asks(trainer: Trainer) -> bool:
    """Whether it is time for several processes to ask each other."""
    return trainer.global_step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]


def limits(trainer: Trainer) -> dict[str, Any]:
    """What says how long to train: a run that has come to its end has more to do where a fork changes that."""
    return RunFolder(Path(trainer.default_root_dir)).config()["trainer"]
