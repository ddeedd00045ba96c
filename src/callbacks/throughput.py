import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.models.base import logs_now


class Throughput(Callback):
    """Logs how fast training runs, every `log_every_n_steps`: `perf/samples_per_sec`, `perf/step_sec` and
    `perf/data_wait_frac`, the share of the time in which training waited for its next batch.

    Only the host's clock is read. It is right on a GPU too, because the log that is written at the same steps waits for
    the device anyway; Lightning's ThroughputMonitor waits for it at each batch. Validation and checkpoints do not
    count.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.wait_sec = 0.0
        self.t_start: float | None = None  # of the window; none until a batch has ended after a pause
        self.t_end = 0.0  # of the last batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.t_start is not None:
            self.wait_sec += time.perf_counter() - self.t_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.t_end = time.perf_counter()
        if self.t_start is None:
            self.t_start = self.t_end
            return
        self.samples += len(batch["index"])
        if not self.samples or not logs_now(trainer, batch_idx):
            return
        seconds, world_size = self.t_end - self.t_start, trainer.world_size
        batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        pl_module.log("perf/samples_per_sec", self.samples * world_size / seconds)
        pl_module.log("perf/step_sec", seconds * batch_size / (self.samples * world_size))
        pl_module.log("perf/data_wait_frac", self.wait_sec / seconds)
        self.samples, self.wait_sec, self.t_start = 0, 0.0, self.t_end

    def pause(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any = None) -> None:
        self.samples, self.wait_sec, self.t_start = 0, 0.0, None

    on_validation_start = on_save_checkpoint = pause
