import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ThrottledProgress(ProgressBar):
    """A bar over the whole training, and a line of metrics after each validation.

    The bar is drawn a few times a second, whatever the number of steps; where there is no terminal, only lines are
    written.

    Args:
        refresh_sec: seconds between two drawings.
        line_sec: least seconds between two lines.
    """

    def __init__(self, refresh_sec: float = 0.2, line_sec: float = 5.0) -> None:
        super().__init__()
        self.refresh_sec, self.line_sec = refresh_sec, line_sec
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self.bar: Progress | None = None
        self.enabled = True
        self.t_draw = self.t_line = 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.t_line = 0.0
        if not self.enabled or not trainer.is_global_zero:
            return
        self.console.print(plan(trainer, pl_module))
        if not self.console.is_terminal:
            return
        columns = (TextColumn("epoch {task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("steps"))
        self.bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, auto_refresh=False, expand=True
        )
        total = trainer.estimated_stepping_batches
        self.task = self.bar.add_task("", total=None if total == float("inf") else total)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self.bar is not None and now - self.t_draw > self.refresh_sec:
            self.t_draw = now
            self.draw(trainer)

    def draw(self, trainer: Trainer) -> None:
        assert self.bar is not None
        self.bar.update(self.task, description=str(trainer.current_epoch + 1), completed=trainer.global_step)
        self.bar.refresh()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs > 0
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.enabled or not trainer.is_global_zero:
            return
        if now - self.t_line < self.line_sec and not last:
            return
        self.t_line = now
        shown = sorted(n for n in trainer.logged_metrics if n.startswith(("train/", "val/", "optim/lr")))
        values = "  ".join(f"{name} {float(trainer.logged_metrics[name]):.4g}" for name in shown)
        self.console.print(f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}  {values}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close(trainer)

    def close(self, trainer: Trainer) -> None:
        if self.bar is not None:
            self.draw(trainer)
            self.bar.stop()
            self.bar = None


def plan(trainer: Trainer, model: LightningModule) -> str:
    """One line of what will happen."""
    parameters = sum(p.numel() for p in model.parameters())
    network, data = type(model.network).__name__, trainer.datamodule  # type: ignore[attr-defined]
    samples = ", ".join(f"{split} {n:,}" for split, n in data.num_samples.items())
    at_once = f" ({data.micro_batch_size} at once)" if data.micro_batch_size < data.batch_size else ""
    where = f"{trainer.num_devices} {trainer.strategy.root_device.type}, {trainer.precision}"
    steps = f"{trainer.estimated_stepping_batches:,} steps of {data.batch_size}{at_once} samples"
    return f"{network}, {parameters:,} parameters, on {where}; {samples} samples; {steps}"
