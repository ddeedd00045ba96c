import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.expected import expected
from src.cost.devices import here
from src.models.base import logs_now
from src.run.ledger import LEDGER
from src.run.parts import Parts


class Throughput(Callback):
    """Logs how fast training runs, every `log_every_n_steps`: `perf/samples_per_sec`, `perf/step_sec`,
    `perf/data_wait_frac`, the share of the time in which training waited for its next batch, and `perf/mfu`, the share
    of the devices' peak (Chowdhery et al., PaLM, 2022): three times the forward pass's operations, or, where parameters
    are frozen, those of both passes as they are counted, over what the data sheet says for the precision. What is
    computed twice counts once. There is none where peak or operations are not known; CPUs have none.

    Only the host's clock is read. It is right on a GPU too, because the log that is written at the same steps waits for
    the device anyway; Lightning's ThroughputMonitor waits for it at each batch. Validation and checkpoints do not
    count.
    """

    def __init__(self) -> None:
        self.pause()
        self.peak = 0.0  # FLOP/s of all devices
        self.flops = 0.0  # of a sample, in both passes

    def pause(self, *args: Any, **kwargs: Any) -> None:
        self.samples, self.waited_sec = 0, LEDGER.seconds["data_wait"]
        self.t_start: float | None = None  # of the window; none until a batch has ended after a pause

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.peak = here(trainer.strategy.root_device).peak(str(trainer.precision)) * trainer.world_size
        self.flops = 3.0 * (getattr(pl_module, "flops_per_sample", None) or 0)
        if self.peak and not all(p.requires_grad for p in pl_module.parameters()):
            usage = expected(trainer, pl_module)  # type: ignore[arg-type]
            self.flops = (usage.flops - usage.recomputed) / trainer.datamodule.micro_batch_size  # type: ignore[attr-defined]

    on_validation_start = on_save_checkpoint = pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self.t_start is None:
            self.t_start, self.waited_sec = now, LEDGER.seconds["data_wait"]
            return
        self.samples += len(batch["index"]) * trainer.world_size
        if logs_now(trainer, batch_idx):
            seconds, batch_size = now - self.t_start, trainer.datamodule.batch_size  # type: ignore[attr-defined]
            pl_module.log("perf/samples_per_sec", self.samples / seconds)
            pl_module.log("perf/step_sec", seconds * batch_size / self.samples)
            if isinstance(trainer.profiler, Parts):  # type: ignore[attr-defined]  # who tells the ledger
                pl_module.log("perf/data_wait_frac", (LEDGER.seconds["data_wait"] - self.waited_sec) / seconds)
            if self.peak and self.flops:
                pl_module.log("perf/mfu", self.flops * self.samples / seconds / self.peak)
            self.samples, self.waited_sec, self.t_start = 0, LEDGER.seconds["data_wait"], now
