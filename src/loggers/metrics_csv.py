import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.run import rank, write_text


def read_curves(run_dir: Path, kinds: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps [T] and values [T] of each metric whose name begins with one of `kinds`."""
    path = run_dir / "metrics.csv"
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row["step"].isdigit()]
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name in (name for name in row if name and name.startswith(kinds) and row[name]):
            points.setdefault(name, []).append((int(row["step"]), float(row[name])))
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}


class MetricsCSV(Logger):
    """`metrics.csv` in the run folder: a row for each logged step, a column for each metric, rows added as they come.

    `step` is the index of the optimizer step, from 0. A run that goes on after `resume_step` steps first drops the rows
    from there on, because it will write them again.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path, self.columns = run_dir / "metrics.csv", ["step", "epoch"]
        if self.path.exists() and rank() == 0:
            self.rewrite([row for row in self.rows() if row["step"].isdigit() and int(row["step"]) < resume_step])

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            rows = self.rows()
            self.columns += sorted(new)
            self.rewrite(rows)
        with open(self.path, "a", newline="", encoding="utf-8") as f:
            csv.DictWriter(f, self.columns).writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """All whole rows: a killed process may have left a part of one at the end."""
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as f:
            lines = [line for line in f if line.endswith("\n")]
        reader = csv.DictReader(lines)
        self.columns = list(reader.fieldnames or self.columns)
        return [row for row in reader if None not in row and None not in row.values()]

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
