"""Lightning's other loggers, which `trainer.logger` names: they write into the run folder, go on with a run, and stop none."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from src.run.errors import EnvironmentFault, need
from src.run.folder import RunFolder, flat
from src.run.private import purge_from
from src.run.terminal import rank_zero_print

NEEDS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}  # packages, and extras of the same name
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # else it tries for minutes


def at_home(spec: Any, folder: RunFolder) -> Any:
    """What a config says of `trainer.logger`, with what it leaves out: where a run is recorded, and under what name.

    Raises:
        ConfigError: the package of a logger is not installed.
    """
    if isinstance(spec, list):
        return [at_home(one, folder) for one in spec]
    if not isinstance(spec, dict):
        return None  # true is metrics.csv, which all runs have
    path, kind = folder.path.resolve(), spec["class_path"].rpartition(".")[2]
    if kind in NEEDS:
        need(NEEDS[kind], NEEDS[kind])
    mlflow = {"run_id": folder.state.get("mlflow_run_id"), "experiment_name": path.parent.name, "run_name": path.name}
    home: dict[str, dict[str, Any]] = {
        "TensorBoardLogger": {"save_dir": str(path), "name": "", "version": "tensorboard"},
        "CSVLogger": {"save_dir": str(path), "name": "csv"},
        "MLFlowLogger": {"save_dir": str(path / "mlruns"), **mlflow},
    }
    return {**spec, "init_args": home.get(kind, {}) | (spec.get("init_args") or {})}


def begin(loggers: Iterable[Any], folder: RunFolder, logged: int, config: dict[str, Any]) -> None:
    """Start the records with the config of the run, or go on with them after so many steps.

    Raises:
        EnvironmentFault: a folder cannot be written, or a server does not answer.
    """
    for name, value in RETRIES.items():
        os.environ.setdefault(name, value)
    for logger in loggers:
        kind = type(logger).__name__
        try:
            if kind == "TensorBoardLogger" and logged:
                purge_from(logger, logged)
            if kind != "MLFlowLogger" or "mlflow_run_id" not in folder.state:  # it lets no parameter change
                logger.log_hyperparams(flat(config))
            if kind == "MLFlowLogger":
                folder.note(mlflow_run_id=logger.version)
            logger.save()
        except Exception as e:  # of whatever its package raises
            raise EnvironmentFault(f"trainer.logger: {kind}: {in_one_line(e)} -> mend that, or leave it out") from e
        logger.__class__ = type(kind, (Guarded, type(logger)), {})


class Guarded:
    """Goes before a logger's class: its first error is a line in the terminal, and the end of its record."""

    broken = False

    def attempt(self, act: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        try:
            if not self.broken:
                act(*args, **kwargs)
        except Exception as e:  # whatever it is, the run is worth more than its record
            self.broken = True
            what = f"{type(self).__name__}: {in_one_line(e)}; nothing more is recorded there"
            rank_zero_print(f"{what}. metrics.csv has all metrics.")

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_metrics, *args, **kwargs)  # type: ignore[misc]

    def save(self) -> None:
        self.attempt(super().save)  # type: ignore[misc]

    def finalize(self, status: str) -> None:
        self.attempt(super().finalize, status)  # type: ignore[misc]


def in_one_line(e: Exception) -> str:
    return " ".join(str(e).split())[:300] or type(e).__name__
