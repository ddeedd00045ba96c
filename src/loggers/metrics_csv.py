import csv
import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.loggers.curves import whole_rows
from src.run.files import write_text
from src.run.terminal import rank

TAKEN = ("perf/seconds", "perf/samples", "perf/flops")


class MetricsCSV(Logger):
    """`metrics.csv` in the run folder: a row for each logged step, a column for each metric, rows added as they come.

    `step` is the index of the optimizer step, from 0. `perf/seconds`, `perf/samples` and `perf/flops`, three times the
    forward pass's, are what training has taken until then, also in earlier processes, without steps that were lost. A
    run that goes on after `resume_step` steps first drops the rows from there on, because it will write them again.
    Lightning's CSVLogger deletes the file of a run that goes on, and a kill loses what it has not written yet, or the
    whole file while it adds a column.
    """

    name, version = "metrics", ""

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path, self.columns = run_dir / "metrics.csv", ["step", "epoch"]
        self.before = {"step": -1.0, **dict.fromkeys(TAKEN, 0.0)}  # what was taken until the last row that is kept
        self.begin()
        if self.path.exists() and rank() == 0:
            kept = [row for row in whole_rows(self.path) if int(row["step"]) < resume_step]
            for row in kept[-1:]:
                self.before = {name: float(row[name]) for name in ("step", *TAKEN) if row.get(name)}
            self.rewrite(kept)

    def begin(self, batch_size: int = 0, flops_per_sample: int | None = None) -> None:
        """Training begins now."""
        self.begun = time.perf_counter()
        self.per_step = (batch_size, 3 * batch_size * (flops_per_sample or 0))
        for name, n in zip(TAKEN, (0, *self.per_step), strict=True):  # where the run was begun without these columns
            self.before.setdefault(name, (self.before["step"] + 1) * n)

    @property
    def save_dir(self) -> str:
        """Where Lightning's profilers write."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        steps = (step or 0) - self.before["step"]
        taken = (time.perf_counter() - self.begun, *(steps * n for n in self.per_step))
        sums = {name: round(self.before.get(name, 0.0) + n, 3) for name, n in zip(TAKEN, taken, strict=True) if n}
        row = {"step": step, **metrics, **sums}
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
