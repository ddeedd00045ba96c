import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from src.data.report import lines
from src.models.base import Model
from src.run.device import has_bfloat16
from src.run.terminal import console, count, duration, rows

MEASURE_SEC, MEASURE_STEPS, SLOW_SEC = 0.5, 5, 30.0  # before the time of a step is known


class ThrottledProgress(Callback):
    """A bar over the whole training, and lines of metrics: when the first are logged, after each validation, and each
    minute in between.

    The bar is drawn a few times a second, whatever the number of steps; where there is no terminal, only lines are
    written. Lightning's RichProgressBar begins anew at each epoch and leaves no lines in a log file.

    Args:
        refresh_sec: seconds between two drawings.
        line_sec: least seconds between two lines that follow validations.
        train_line_sec: after so many seconds without a line there is one of training alone.
    """

    def __init__(self, refresh_sec: float = 0.2, line_sec: float = 5.0, train_line_sec: float = 60.0) -> None:
        self.refresh_sec, self.line_sec, self.train_line_sec = refresh_sec, line_sec, train_line_sec
        self.console = console()
        self.bar: Progress | None = None
        self.t_draw = self.t_line = self.t_val_line = 0.0
        self.first: tuple[float, int] | None = None  # when the first step had ended, and its number
        self.knows_step_sec = self.knows_loss = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.console.print(rows(plan(trainer, pl_module)))  # type: ignore[arg-type]
        self.t_line = time.monotonic()
        if self.console.is_terminal:
            columns = (BarColumn(None), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
            self.bar = Progress(
                TextColumn("epoch {task.description}"), *columns, TimeRemainingColumn(),
                console=self.console, auto_refresh=False, expand=True,
            )  # fmt: skip
            total = trainer.estimated_stepping_batches
            self.task = self.bar.add_task("", total=total if math.isfinite(total) else None)
            self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = time.monotonic()
        self.first = self.first or (now, trainer.global_step)
        if not self.knows_step_sec:
            self.measure_step(trainer, now - self.first[0], trainer.global_step - self.first[1])
        if now - self.t_draw > self.refresh_sec:
            self.t_draw = now
            self.draw(trainer)
        is_first = not self.knows_loss and "train/loss" in trainer.logged_metrics
        if is_first or now - self.t_line > self.train_line_sec:
            self.print_metrics(trainer, ("train/", "optim/lr"))

    def measure_step(self, trainer: Trainer, sec: float, steps: int) -> None:
        """Print how long a step takes, as soon as that can be said."""
        if steps and (sec > SLOW_SEC or (sec > MEASURE_SEC and steps >= MEASURE_STEPS)):
            self.knows_step_sec, step_sec = True, sec / steps
            step_text = f"{step_sec:.3g} s" if step_sec >= 1 else f"{step_sec * 1000:.3g} ms"
            self.console.print(rows({"time": f"{self.left(trainer)}, {step_text} a step"}))

    def left(self, trainer: Trainer) -> str:
        """The time that is left, from the mean of the steps and validations so far (but for the slow first step)."""
        t_first, first = self.first or (0.0, math.inf)
        step_sec = (time.monotonic() - t_first) / max(1, trainer.global_step - first)
        left_sec = step_sec * (trainer.estimated_stepping_batches - trainer.global_step)
        if not math.isfinite(left_sec):
            return "no end is set"
        end = time.strftime("%a %H:%M", time.localtime(time.time() + left_sec))
        return f"about {duration(left_sec)} more, until {end}"

    def draw(self, trainer: Trainer) -> None:
        if self.bar is not None:
            epoch = min(trainer.current_epoch + 1, last_epoch(trainer))  # after the last one it is that one's
            self.bar.update(self.task, description=f"{epoch}", completed=trainer.global_step, refresh=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, epoch = time.monotonic(), trainer.current_epoch + 1
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if now - self.t_val_line > self.line_sec or epoch >= last_epoch(trainer):
            self.t_val_line = now
            self.print_metrics(trainer, ("train/", "val/", "optim/lr"))

    def print_metrics(self, trainer: Trainer, kinds: tuple[str, ...]) -> None:
        self.t_line = time.monotonic()
        shown = sorted(n for n in trainer.logged_metrics if n.startswith(kinds))
        self.knows_loss = self.knows_loss or "train/loss" in shown
        values = "  ".join(f"{name} {float(trainer.logged_metrics[name]):.4g}" for name in shown)
        ends = trainer.global_step >= trainer.estimated_stepping_batches
        left = "" if self.bar or not self.knows_step_sec or ends else f"  {self.left(trainer)}"
        self.console.print(f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}  {values}{left}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any = None) -> None:
        if self.bar is not None:
            self.draw(trainer)
            self.bar.stop()
            self.bar = None

    on_train_end = on_exception


def last_epoch(trainer: Trainer) -> float:
    """The number of the last epoch, from 1, or infinity."""
    return trainer.max_epochs if (trainer.max_epochs or 0) > 0 else math.inf  # type: ignore[return-value]


def plan(trainer: Trainer, model: Model) -> dict[str, str]:
    """What will happen."""
    data, steps = trainer.datamodule, trainer.estimated_stepping_batches  # type: ignore[attr-defined]
    device, parameters = trainer.strategy.root_device, sum(p.numel() for p in model.parameters())
    frozen = parameters - sum(p.numel() for p in model.parameters() if p.requires_grad)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    at_once = f" ({data.micro_batch_size} at once on a device)" if data.micro_batch_size < data.batch_size else ""
    epochs = f" in {last_epoch(trainer):,} epochs" if math.isfinite(last_epoch(trainer)) else ""
    table = {
        "network": f"{type(model.network).__name__}, {parameters:,} parameters"
        + (f", {frozen:,} frozen" if frozen else ""),
        "data": ", ".join(f"{split} {n:,}" for split, n in data.num_samples.items())
        + " samples"
        + (" (test is val)" if "same_as" in data.report.get("test", {}) else ""),
        "steps": f"{steps:,} of {data.batch_size} samples{at_once}{epochs}".replace("inf of", "without end, of"),
    }
    if model.flops_per_sample:
        total = 3 * model.flops_per_sample * data.batch_size * steps
        in_all = f", {count(total, 'FLOP')} in all" if math.isfinite(total) else ""
        table["compute"] = f"{count(model.flops_per_sample, 'FLOP')} a sample forward{in_all}"
    table |= lines(data.report)
    devices = trainer.num_devices * trainer.num_nodes
    emulated = "bf16" in trainer.precision and not has_bfloat16(device)
    hint = ", which it has to emulate: trainer.precision auto is faster" if emulated else ""
    return {**table, "device": f"{devices} x {name}{threads}, precision {trainer.precision}{hint}"}
