from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from src.data.module import Batch
from src.loggers.curves import curves
from src.loggers.metrics_csv import read_curves
from src.run import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SAMPLES = 32


class Pictures(Callback):
    """Draws PNG files into the run folder, and for W&B: `samples.png`, training samples as the network sees them;
    after the test `curves.png`, the metrics over the steps, and what data and model draw of the splits and the results.

    Args:
        enabled: false draws nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled, self.draws, self.has_samples = enabled, False, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.draws = self.enabled and trainer.is_global_zero

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Draw the first batch when it has been trained on: to load matplotlib and draw takes a second."""
        if self.draws and not self.has_samples:
            self.has_samples = True
            data = trainer.datamodule  # type: ignore[attr-defined]
            self.save(trainer, "samples", data.picture({name: t[:NUM_SAMPLES] for name, t in batch.items()}))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.draws:
            metrics = read_curves(Path(trainer.default_root_dir), ("train/", "val/"))
            self.save(trainer, "curves", curves({"": [metrics]}) if metrics else None)
            data = trainer.datamodule  # type: ignore[attr-defined]
            for name, figure in {**data.pictures(), **pl_module.pictures()}.items():  # type: ignore[operator]
                self.save(trainer, name, figure)

    def save(self, trainer: Trainer, name: str, figure: "Figure | None") -> None:
        if figure is None:
            return
        path = Path(trainer.default_root_dir) / f"{name}.png"
        figures.save(figure, path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"pictures/{name}", [str(path)])
