from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from src.data.report import table
from src.run.files import write_json

MAX_ROWS = 1000  # of what was left out, in W&B; the file has all of them


class DataReport(Callback):
    """Writes the report of the data module to `data_report.json` in the run folder, and as tables for W&B."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = trainer.datamodule.report  # type: ignore[attr-defined]
        if not report or not trainer.is_global_zero:
            return
        write_json(Path(trainer.default_root_dir) / "data_report.json", report)
        tables = {"data/splits": table(report)} if "train" in report else {}  # a data module may report what it likes
        if removed := report.get("removed"):
            tables["data/removed"] = list(removed[0]), [list(r.values()) for r in removed[:MAX_ROWS]]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for name, (columns, rows) in tables.items():
                    logger.log_table(name, columns=columns, data=rows)
