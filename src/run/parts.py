"""Which part of the ledger the Trainer is in: it tells its profiler of each hook."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch.profilers import Profiler

from src.run.ledger import LEDGER

Known = dict[str, str]  # hook, or owner and hook -> part
# Until the first step has ended, in training, and within a part that is measured as a whole.
START: Known = {
    "prepare_data": "data",
    "[LightningDataModule].setup": "data",
    "train_dataloader_next": "data_wait",
    "[Callback].on_train_start": "plan",
}
TRAINING: Known = {
    "train_dataloader_next": "data_wait",
    "batch_to_device": "transform",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
    "lr_scheduler_step": "optimizer",
    "save_checkpoint": "checkpoints",
    "[LightningModule].on_train_batch_end": "logging",
    **{f"[{owner}].on_train_epoch_end": "epoch_ends" for owner in ("Callback", "LightningModule")},
    **{f"[Callback].on_train_batch_{when}": "callbacks" for when in ("start", "end")},
    **{f"[Callback].on_before_{what}": "callbacks" for what in ("zero_grad", "backward", "optimizer_step")},
}
WHOLE: Known = {}


class Nothing:
    """What an action costs that is no part of its own: next to nothing, where Lightning's PassThroughProfiler makes a
    generator for each of some sixty actions of a step."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


class Part(Nothing):
    def __init__(self, name: str, within: Callable[[], Any] = int, after: Callable[[], Any] = int) -> None:
        """`within` is called when it has begun, `after` when it has ended."""
        self.name, self.within, self.after = name, within, after

    def __enter__(self) -> None:
        LEDGER.begin(self.name)
        self.within()

    def __exit__(self, *error: Any) -> None:
        LEDGER.end()
        self.after()


class Call(Nothing):
    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def __enter__(self) -> None:
        self.function()


class Parts(Profiler):
    """Charges the ledger for what the Trainer does. What is in no part of its own is the loop's, which is Lightning's.

    Only the host's clock is read. A GPU works on while the host goes on: there `forward` and `backward` are the time to
    tell it what to do, and the wait for it is in what first asks for a number, such as the log.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nothing, self.before = Nothing(), START
        self.turn_to(START)

    def turn_to(self, phase: Known) -> None:
        self.phase = phase
        self.contexts: dict[str, Nothing] = {}

    def profile(self, action_name: str) -> Any:
        context = self.contexts.get(action_name)
        if context is None:
            context = self.contexts[action_name] = self.context(action_name)
        return context

    def context(self, action_name: str) -> Nothing:
        owner, hook = action_name.partition("]")[0] + "]", action_name.rpartition(".")[2]
        if hook == "run_training_batch" and self.phase is START:
            return Part("first_step", partial(self.turn_to, WHOLE), self.begin_training)
        if hook == "on_test_model_eval":
            return Call(partial(self.turn_to, WHOLE))
        if hook == "on_validation_model_eval":  # its first hook
            return Call(self.begin_validation)
        if hook == "on_validation_end" and owner == "[Strategy]":  # its last
            return Call(self.end_validation)
        part = self.phase.get(hook) or self.phase.get(f"{owner}.{hook}")
        return Part(part) if part else self.nothing

    def begin_training(self) -> None:
        """In the first step kernels are chosen and memory is fetched."""
        LEDGER.mark("loop")
        self.turn_to(TRAINING)

    def begin_validation(self) -> None:
        LEDGER.begin("validation")
        self.before = self.phase
        self.turn_to(WHOLE)

    def end_validation(self) -> None:
        LEDGER.end()
        self.turn_to(self.before)

    def start(self, action_name: str) -> None:
        """Lightning calls these two around the fetching of a batch, and of a validation's batch."""
        self.profile(action_name).__enter__()

    def stop(self, action_name: str) -> None:
        self.profile(action_name).__exit__()
