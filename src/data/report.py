"""The data report: what came in, what was left out and why, and how the splits differ. `data_report.json` of a run."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.run.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
MAX_SHIFTS = 3  # that a line names
MAX_LISTED = 1000  # of what is left out for one reason; all are counted
DUPLICATES = ("duplicate", "two labels", "also in test", "also in val")  # reasons that are no fault of a file


@dataclass
class Cleaning:
    """Collects what is left out of a data set."""

    invalid: str = "error"  # refuses data of which some samples cannot be used, `skip` leaves them out
    root: Path = Path()  # the folder that names of files start from
    removed: list[dict[str, str]] = field(default_factory=list)
    skipped: int = 0  # that cannot be used
    first: str = ""  # of them
    hint: str = ""  # what to do about the first of them
    counts: Counter[str] = field(default_factory=Counter)  # left out, by reason
    notes: list[str] = field(default_factory=list)  # for the terminal
    came_in: int = 0  # files or rows

    def skip(self, split: str, file: str | Path, reason: str, hint: str) -> None:
        """Leave out a row, or a file below the root, that cannot be used; `check` says whether that may be."""
        self.hint = self.hint or hint
        self.first = self.first or f"{self.root / file}: {reason}"
        self.skipped += 1
        self.remove(split, file, reason.partition(":")[0], reason.partition(": ")[2])

    def remove(self, split: str, file: str | Path, reason: str, detail: str = "") -> None:
        self.counts[reason] += 1
        if self.counts[reason] > MAX_LISTED:
            return
        name = file if isinstance(file, str) else str(file.relative_to(self.root))
        self.removed.append({"split": split, "file": name, "reason": reason, "detail": detail})

    def note_others(self, files: list[Path]) -> None:
        """Note files that were never meant as samples, and count as none."""
        if files:
            self.notes.append(f"{len(files):,} files are hidden or of another kind by their names, as {files[0]}")

    def check(self) -> None:
        """Raise DataError where samples cannot be used and may not be left out."""
        if self.skipped and self.invalid == "error":
            hint = f"{self.hint}, or leave {'them' if self.skipped > 1 else 'it'} out with --data.invalid skip"
            raise DataError(f"{self.told()} -> {hint}", self.removed)

    def told(self) -> str:
        more = self.skipped - 1
        return f"{self.first}; {more:,} more of {self.came_in:,} cannot be used" if more else self.first

    def report(self) -> dict[str, Any]:
        came_in = max(1, self.came_in)
        return {
            "came_in": self.came_in,
            "removed_counts": dict(self.counts.most_common()),
            "data/missing_frac": self.skipped / came_in,
            "data/duplicate_frac": sum(self.counts[r] for r in DUPLICATES) / came_in,
            "note": "; ".join(self.notes),
            "removed": self.removed,
        }


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Half the summed difference of two histograms' shares: 0 where they agree, 1 where they have nothing in common."""
    return float(np.abs(a / max(1, a.sum()) - b / max(1, b.sum())).sum() / 2)


def lines(report: dict[str, Any], file: str = "data_report.json") -> dict[str, str]:
    """The report in short, for the terminal; `file` has all of it."""
    out = {}
    if report.get("removed"):
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in report["removed_counts"].items())
        out["left out"] = f"{sum(report['removed_counts'].values()):,} of {report['came_in']:,}: {reasons} ({file})"
    if report.get("note"):
        out["note"] = report["note"]
    if report.get("shift"):
        largest = {k: max(np.atleast_1d(value).tolist(), key=abs) for k, value in report["shift"]["test"].items()}
        found = [f"{name.replace('_', ' ')} {value:.2g}" for name, value in largest.items()]
        if len(found) > MAX_SHIFTS:
            order = sorted(largest, key=lambda name: -abs(largest[name]))[:MAX_SHIFTS]
            found = [f"{name} {largest[name]:.2g}" for name in order]
        out["shift"] = f"test against train: {', '.join(found)}"
    return out


def check_facts(now: dict[str, Any], trained: dict[str, Any], varies: tuple[str, ...]) -> None:
    """Raise ConfigError where a trained model's network cannot take data with these facts."""
    for name, value in now.items():
        before = trained.get(name, value)
        is_same = list(value) == list(before) if isinstance(value, tuple) else value == before  # of a file: lists
        if not is_same and name not in varies:
            what = f"data.{name}: the model was trained with {before}, this is {value}"
            raise ConfigError(f"{what} -> leave out what changes it")
