"""Lightning's other loggers, named by `trainer.logger`: they record in the run folder, go on with a run, stop none."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from src.run.errors import EnvironmentFault, need
from src.run.files import read_json, write_json
from src.run.folder import RunFolder, flat
from src.run.terminal import rank_zero_print

PACKAGES = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "CSVLogger": "csv"}  # and their extras

# Folders need no database; a server that does not answer would be tried for minutes.
MLFLOW = {"ALLOW_FILE_STORE": "true", "HTTP_REQUEST_MAX_RETRIES": "2", "HTTP_REQUEST_TIMEOUT": "10"}


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
    for name, value in MLFLOW.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    if kind in home:
        need(PACKAGES[kind], PACKAGES[kind])
        place = path / "mlruns" if kind == "MLFlowLogger" else path
        spec = {**spec, "init_args": {"save_dir": str(place)} | home[kind] | (spec.get("init_args") or {})}
    return spec


def begin(loggers: Iterable[Any], folder: RunFolder, config: dict[str, Any]) -> None:
    """Record the config; raises EnvironmentFault where a folder cannot be written, or a server does not answer."""
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
        guard(logger)


def guard(logger: Any) -> None:
    """Make a logger's first error a line in the terminal, and the end of its record."""
    failed: list[Exception] = []

    def attempt(act: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        try:
            if not failed:
                act(*args, **kwargs)
        except Exception as e:  # whatever it is, the run is worth more than its record
            failed.append(e)
            why = f"{type(logger).__name__}: {' '.join(str(e).split())}"
            rank_zero_print(f"{why}; nothing more is recorded there. metrics.csv has all metrics.")

    for name in ("log_metrics", "save", "finalize"):
        setattr(logger, name, partial(attempt, getattr(logger, name)))
