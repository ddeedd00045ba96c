import sys
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from src.data.module import Batch
from src.loggers.curves import curves, read_curves
from src.run import figures
from src.run.errors import Stopped
from src.run.ledger import LEDGER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SAMPLES = 32


class Pictures(Callback):
    """Draws PNG files into the run folder, and for W&B, after the test: `samples.png`, the first training samples as
    the network saw them; `curves.png`, the metrics over the steps; what data and model draw of splits and results.
    A run that fails draws its samples; none draws before, because to load matplotlib and draw takes seconds.

    Args:
        enabled: false draws nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled, self.draws = enabled, False
        self.samples: Batch | None = None
        self.shown: Any = None
        self.t_next = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.draws = self.enabled and trainer.is_global_zero

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.draws and self.samples is None:
            self.samples = {name: t[:NUM_SAMPLES].clone() for name, t in batch.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In a notebook: the curves so far, in place of those before, for a twentieth of the time at most."""
        shell, began = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None, time.monotonic()
        if not self.draws or not hasattr(shell, "kernel") or began < self.t_next or trainer.sanity_checking:
            return
        from IPython.display import Image, display

        with LEDGER.within("pictures"):
            png = BytesIO()
            curves({"": [read_curves(Path(trainer.default_root_dir), ("train/", "val/"))]}).savefig(png, format="png")
            self.shown = self.shown or display(display_id=True)
            self.shown.update(Image(png.getvalue()))
        self.t_next = time.monotonic() + 20 * (time.monotonic() - began)

    def draw_samples(self, trainer: Trainer) -> None:
        if self.samples is not None:
            self.save(trainer, "samples", trainer.datamodule.picture(self.samples))  # type: ignore[attr-defined]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception) and not isinstance(exception, Stopped):  # a signal leaves little time
            with suppress(Exception), LEDGER.within("pictures"):  # the first error is the one to tell
                self.draw_samples(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.draws:
            return
        with LEDGER.within("pictures"):
            self.draw_samples(trainer)
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
