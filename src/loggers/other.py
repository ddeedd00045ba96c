"""Lightning's other loggers, named by `trainer.logger`: they record in the run folder, go on with a run, stop none."""

import os
from collections.abc import Iterable
from functools import partialmethod
from typing import Any

from src.run.errors import EnvironmentFault, need
from src.run.files import read_json, write_json
from src.run.folder import RunFolder, flat
from src.run.terminal import rank_zero_print

PACKAGES = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "CSVLogger": "csv"}  # and their extras


def at_home(spec: Any, folder: RunFolder) -> Any:
    """What `trainer.logger` is, with what a config leaves out: where a run is recorded, and under what name."""
    if not isinstance(spec, dict):  # true is metrics.csv, which all runs have
        return [at_home(one, folder) for one in spec] if isinstance(spec, list) else None
    path, kind = folder.path.resolve(), spec["class_path"].rpartition(".")[2]
    last = read_json((folder.checkpoints / "last.ckpt").resolve().with_suffix(".json"))
    home: dict[str, Any] = {
        "TensorBoardLogger": {"name": "", "version": "tensorboard", "purge_step": last.get("steps_logged")},
        "MLFlowLogger": {"experiment_name": path.parent.name, "run_name": path.name} | folder.state.get("mlflow", {}),
        "CSVLogger": {"name": "csv"},
    }
    if kind in home:
        need(PACKAGES[kind], PACKAGES[kind])
        place = path / "mlruns" if kind == "MLFlowLogger" else path
        spec = {**spec, "init_args": {"save_dir": str(place)} | home[kind] | (spec.get("init_args") or {})}
    return spec


def begin(loggers: Iterable[Any], folder: RunFolder, config: dict[str, Any]) -> None:
    """Record the config; raises EnvironmentFault where a folder cannot be written, or a server does not answer."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else it tries for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for logger in loggers:
        kind, state = type(logger).__name__, folder.state
        try:
            if kind != "MLFlowLogger" or "mlflow" not in state:  # which lets no parameter change
                logger.log_hyperparams(flat(config))
            if kind == "MLFlowLogger":
                write_json(folder.path / "run.json", state | {"mlflow": {"run_id": logger.version}})
            logger.save()
        except Exception as e:  # of whatever its package raises
            why = " ".join(str(e).split())
            raise EnvironmentFault(f"trainer.logger: {kind}: {why} -> mend that, or leave it out") from e
        logger.__class__ = type(kind, (Guarded, type(logger)), {})


class Guarded:
    """Goes before a logger's class: its first error is a line in the terminal, and the end of its record."""

    failed = False

    def attempt(self, name: str, *args: Any, **kwargs: Any) -> None:
        try:
            if not self.failed:
                getattr(super(), name)(*args, **kwargs)
        except Exception as e:  # whatever it is, the run is worth more than its record
            self.failed = True
            why = f"{type(self).__name__}: {' '.join(str(e).split())}"
            rank_zero_print(f"{why}; nothing more is recorded there. metrics.csv has all metrics.")

    log_metrics = partialmethod(attempt, "log_metrics")
    save, finalize = partialmethod(attempt, "save"), partialmethod(attempt, "finalize")
