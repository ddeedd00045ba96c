"""Experiments that train in the benchmark's own process. Not in side_by_side.py: Lightning sets a variable of the
environment on import, which processes of peers would inherit, and by which each of their steps takes longer."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from src.config.build import Experiment
from src.config.request import command_parser, read_request
from src.loggers.metrics_csv import MetricsCSV


class Stopwatch(Callback):
    """When each step ended, from that with number `first` on: those before are start-up."""

    def __init__(self, first: int = 1) -> None:
        self.first, self.ends = first, list[float]()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= self.first:
            self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Of a step, on average."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def built(flags: Sequence[str], folder: str, *watching: Callback) -> Any:
    """An experiment as src.train makes it, that writes its metrics into the folder, but with no run folder and W&B."""
    experiment = Experiment(read_request(command_parser("benchmark", None), flags))
    experiment.build(logger=False, default_root_dir=folder)
    Path(folder, "config.yaml").write_text("trainer: {}\n")  # as in every run folder
    experiment.trainer.loggers = [MetricsCSV(Path(folder))]
    experiment.trainer.callbacks[:0] = watching
    return experiment
