"""What a checkpoint holds besides what Lightning puts in, and how a run takes it up again."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.trainer.states import TrainerFn

from src.run.checkpoint import gathered, set_rng_state
from src.run.folder import RunFolder
from src.run.private import set_steps_logged, steps_logged


def complete(
    checkpoint: dict[str, Any], trainer: Trainer, rng: dict[str, Any], in_validation: bool, trained: bool
) -> None:
    """Add what Lightning leaves out, and set its counters to the moment between two steps.

    Args:
        rng: the state of this process's random generators.
        in_validation: whether the moment is that before the validation that runs now.
        trained: whether training came to its end.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count |= dict.fromkeys(("ready", "started", "processed"), count["completed"])  # the next batch is not yet begun
    progress["is_last_batch"] = False
    if in_validation:  # count as Lightning does when the first batch has begun: it then repeats the validation
        count = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        completed = count["total"]["completed"]
        count["total"] |= {"ready": completed + 1, "started": completed + 1, "processed": completed}
        count["current"] |= dict.fromkeys(count["current"], 0)
    metrics = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith("perf/")}
    checkpoint |= {
        "rng": gathered(rng, trainer),
        "metrics": {name: value.detach().cpu() for name, value in metrics.items()},
        "steps_logged": steps_logged(trainer),
        "should_stop": trainer.should_stop,
        "in_validation": in_validation,
        "trained": limits(trainer) if trained else None,
    }


class Resumption:
    """Puts back what Lightning does not restore, or counts on from a wrong number."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None  # until it is put back

    def load(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        self.state = {name: checkpoint[name] for name in ("rng", "metrics", "steps_logged")}
        self.state["should_stop"] = checkpoint["should_stop"] and not checkpoint["trained"]
        if trainer.state.fn == TrainerFn.FITTING:
            # Before all other callbacks; Lightning moves the one that saves checkpoints to the end.
            hooks = dict.fromkeys(("on_train_batch_start", "on_validation_start"), self.put_back_counts)
            trainer.callbacks = [LambdaCallback(**hooks), *trainer.callbacks]  # type: ignore[attr-defined]
            if checkpoint["trained"] == limits(trainer):
                trainer.should_stop = True  # also where an early stop ended training before max_epochs
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            saved = checkpoint["callbacks"].get(callback.state_key, {})
            if "patience" in saved:  # Lightning would take it from the checkpoint, whatever a fork's config says
                saved["patience"] = callback.patience

    def put_back_counts(self, trainer: Trainer, *_: Any) -> None:
        """What callbacks that come before the one that saves look at, too."""
        if self.state is not None:
            trainer.callback_metrics.update(self.state["metrics"])
            set_steps_logged(trainer, self.state["steps_logged"])

    def put_back(self, trainer: Trainer) -> None:
        """What is put back at the very moment at which it was saved."""
        if self.state is None:
            return
        states = self.state["rng"]
        set_rng_state(states[trainer.global_rank % len(states)])
        # An early stop may wait for min_epochs; plateau schedules may look at the last validation.
        trainer.should_stop = self.state["should_stop"]
        trainer.fit_loop.restarting = False  # as long as it is true, plateau schedules sleep until the epoch's end
        self.state = None


def limits(trainer: Trainer) -> dict[str, Any]:
    """What says how long to train: a run that has come to its end has more to do where a fork changes that."""
    return RunFolder(Path(trainer.default_root_dir)).config()["trainer"]
