import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from src.callbacks.expected import expected
from src.cost.memory import Usage
from src.data.report import lines
from src.models.base import Model
from src.run.terminal import by_part, console, count, duration, rows

LONG_FLOPS = 1e12  # of a run that takes a minute or so on one core of a CPU
QUICK_MODULES = 100  # of a model whose memory is planned in a second


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
        self.bar = Progress(
            TextColumn("epoch {task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("steps"),
            TimeElapsedColumn(), TimeRemainingColumn(),
            console=self.console, auto_refresh=False, expand=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.t_draw = self.t_line = self.t_val_line = 0.0
        self.first: tuple[float, int] | None = None  # when the first step had ended, which is slow, and its number
        self.knows_loss = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module
        self.console.print(rows(plan(trainer, model, expected(trainer, model) if is_worth(trainer, model) else None)))
        self.t_line = time.monotonic()
        total = trainer.estimated_stepping_batches
        self.task = self.bar.add_task("", total=total if math.isfinite(total) else None)
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = time.monotonic()
        self.first = self.first or (now, trainer.global_step)
        if now - self.t_draw > self.refresh_sec:
            self.t_draw = now
            self.draw(trainer)
        is_first = not self.knows_loss and "train/loss" in trainer.logged_metrics
        if is_first or now - self.t_line > self.train_line_sec:
            self.print_metrics(trainer, ("train/", "optim/lr"))

    def draw(self, trainer: Trainer) -> None:
        if self.bar.live.is_started:
            epoch = min(trainer.current_epoch + 1, last_epoch(trainer))  # after the last one it is that one's
            self.bar.update(self.task, description=f"{epoch}", completed=trainer.global_step, refresh=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        is_due = now - self.t_val_line > self.line_sec or trainer.current_epoch + 1 >= last_epoch(trainer)
        if is_due and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.t_val_line = now
            self.print_metrics(trainer, ("train/", "val/", "optim/lr"))

    def print_metrics(self, trainer: Trainer, kinds: tuple[str, ...]) -> None:
        self.t_line = time.monotonic()
        shown = sorted(name for name in trainer.logged_metrics if name.startswith(kinds))
        self.knows_loss = self.knows_loss or "train/loss" in shown
        values = "  ".join(f"{name} {float(trainer.logged_metrics[name]):.4g}" for name in shown)
        left = "" if self.console.is_terminal else self.time_left(trainer)
        self.console.print(f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}  {values}{left}")

    def time_left(self, trainer: Trainer) -> str:
        """From the mean of the steps and validations so far; nothing before the second step and after the last."""
        t_first, first = self.first or (0.0, trainer.global_step)
        steps = trainer.estimated_stepping_batches - trainer.global_step
        if trainer.global_step == first or not 0 < steps < math.inf:
            return ""
        seconds = steps * (time.monotonic() - t_first) / (trainer.global_step - first)
        end = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
        return f"  about {duration(seconds)} more, until {end}"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any = None) -> None:
        self.draw(trainer)
        self.bar.stop()

    on_train_end = on_exception


def is_worth(trainer: Trainer, model: Model) -> bool:
    """Whether a run is so long that it may begin a second later, in which its memory is planned."""
    samples = trainer.estimated_stepping_batches * trainer.datamodule.batch_size  # type: ignore[attr-defined]
    quick = sum(1 for _ in model.modules()) <= QUICK_MODULES and trainer.world_size == 1
    return quick and 3 * (model.flops_per_sample or 0) * samples >= LONG_FLOPS


def last_epoch(trainer: Trainer) -> float:
    """The number of the last epoch, from 1, or infinity."""
    return trainer.max_epochs if (trainer.max_epochs or 0) > 0 else math.inf  # type: ignore[return-value]


def plan(
    trainer: Trainer, model: Model, usage: Usage | None = None, parts: dict[str, int] | None = None
) -> dict[str, str]:
    """What will happen; `usage` is what a step is expected to take, and `parts` its bytes where several devices share
    them."""
    data, steps, epochs = trainer.datamodule, trainer.estimated_stepping_batches, last_epoch(trainer)  # type: ignore[attr-defined]
    parameters = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    frozen_text = f", {frozen:,} frozen" if frozen else ""
    splits = ", ".join(f"{split} {n:,}" for split, n in data.num_samples.items())
    same = " (test is val)" if "same_as" in data.report.get("test", {}) else ""
    without = f", without {len(data.left_out):,} of train" if len(data.left_out) else ""
    at_once = f" ({data.micro_batch_size} at once on a device)" if data.micro_batch_size < data.batch_size else ""
    epochs_text = f" in {epochs:,} epochs" if math.isfinite(epochs) else ""
    table = {
        "network": f"{model.network_name}, {parameters:,} parameters{frozen_text}",
        "data": f"{splits} samples{same}{without}",
        "steps": f"{steps:,} of {data.batch_size} samples{at_once}{epochs_text}".replace("inf of", "without end, of"),
    }
    if model.flops_per_sample:
        total = 3 * model.flops_per_sample * data.batch_size * steps  # about: Kaplan et al., 2020
        in_all = f", {count(total, 'FLOP')} in all" if math.isfinite(total) else ""
        table["compute"] = f"{count(model.flops_per_sample, 'FLOP')} a sample forward{in_all}"
    table |= {**lines(data.report), "device": device_text(trainer)}
    if usage:
        flops = (usage.flops * trainer.accumulate_grad_batches + usage.update_flops) * trainer.world_size
        known = f"{by_part(parts or usage.parts())} on a device, and {count(flops, 'FLOP')} a step"
        table["memory"] = f"unknown ({usage.unknown})" if usage.unknown else known
    return table


def device_text(trainer: Trainer) -> str:
    device, devices = trainer.strategy.root_device, trainer.num_devices * trainer.num_nodes
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{devices} x {name}{threads}, precision {trainer.precision}"
