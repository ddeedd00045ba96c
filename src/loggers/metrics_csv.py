import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.loggers.curves import whole_rows
from src.run.files import write_text
from src.run.terminal import rank


def read_curves(run_dir: Path, kinds: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps [T] and values [T] of each metric whose name begins with one of `kinds`."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in whole_rows(run_dir / "metrics.csv"):
        for name, value in row.items():
            if value and name.startswith(kinds):
                points.setdefault(name, []).append((int(row["step"]), float(value)))
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}


class MetricsCSV(Logger):
    """`metrics.csv` in the run folder: a row for each logged step, a column for each metric, rows added as they come.

    `step` is the index of the optimizer step, from 0. A run that goes on after `resume_step` steps first drops the rows
    from there on, because it will write them again. Lightning's CSVLogger deletes the file of a run that goes on, and a
    kill loses what it has not written yet, or the whole file while it adds a column.
    """

    name, version = "metrics", ""

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path, self.columns = run_dir / "metrics.csv", ["step", "epoch"]
        if self.path.exists() and rank() == 0:
            self.rewrite([row for row in whole_rows(self.path) if int(row["step"]) < resume_step])

    @property
    def save_dir(self) -> str:
        """Where Lightning's profilers write."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if not self.path.exists() or not row.keys() <= set(self.columns):
            self.rewrite(whole_rows(self.path), sorted(row))
        with open(self.path, "a", newline="", encoding="utf-8") as f:
            csv.DictWriter(f, self.columns).writerow(row)

    def rewrite(self, rows: list[dict[str, str]], more: Iterable[str] = ()) -> None:
        """All rows under one header, with `more` columns at its end."""
        self.columns = list(dict.fromkeys([*self.columns, *(name for row in rows for name in row), *more]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
