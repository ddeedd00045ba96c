from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from src.loggers.curves import curves
from src.loggers.metrics_csv import read_curves
from src.run import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SAMPLES = 32


class Pictures(Callback):
    """Draws PNG files into the run folder, and for W&B: `samples.png`, training samples as the network sees them;
    after the test `curves.png`, the metrics over the steps, and what the model draws of its results.

    Args:
        enabled: false draws nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled, self.trains = enabled, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trains |= stage == "fit" and self.enabled and trainer.is_global_zero

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.trains:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        index = next(iter(data.train_dataloader().order), None)  # of the batch that comes next
        if index is not None:
            batch = data.transfer_batch_to_device(data.splits["train"][index[:NUM_SAMPLES]], pl_module.device, 0)
            self.save(trainer, "samples", data.picture(data.on_after_batch_transfer(batch, 0)))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.trains:
            metrics = read_curves(Path(trainer.default_root_dir), ("train/", "val/"))
            self.save(trainer, "curves", curves({"": [metrics]}) if metrics else None)
            for name, figure in pl_module.pictures().items():  # type: ignore[operator]
                self.save(trainer, name, figure)

    def save(self, trainer: Trainer, name: str, figure: "Figure | None") -> None:
        if figure is None:
            return
        path = Path(trainer.default_root_dir) / f"{name}.png"
        figures.save(figure, path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"pictures/{name}", [str(path)])
