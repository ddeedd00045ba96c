"""The data report: what came in, what was left out and why, and how the splits differ. `data_report.json` of a run."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.run.errors import DataError

SPLITS = ("train", "val", "test")
DUPLICATES = ("duplicate", "two labels", "also in test", "also in val")  # reasons that are no fault of a file


@dataclass
class Cleaning:
    """Collects what is left out of a data set."""

    invalid: str = "error"  # refuses data of which some samples cannot be used, `skip` leaves them out
    max_skipped_frac: float = 0.05  # the largest share of samples that may be left out so
    root: Path = Path()  # the folder that names of files start from
    removed: list[dict[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    hint: str = ""  # what to do about the first of them
    notes: list[str] = field(default_factory=list)  # for the terminal
    came_in: int = 0  # files or rows
    num_ignored: int = 0

    def name(self, file: str | Path) -> str:
        return file if isinstance(file, str) else str(file.relative_to(self.root))

    def skip(self, split: str, file: str | Path, reason: str, hint: str) -> None:
        """Leave out a row, or a file below the root, that cannot be used; `check_limit` says whether that may be."""
        self.hint = self.hint or hint
        self.skipped.append(f"{self.root / file}: {reason}")
        self.remove(split, file, reason.partition(":")[0], reason.partition(": ")[2])

    def ignore(self, split: str, file: str | Path, reason: str) -> None:
        """Leave out a file that was never meant as a sample, and counts as none."""
        self.num_ignored += 1
        self.remove(split, file, reason)

    def remove(self, split: str, file: str | Path, reason: str, detail: str = "") -> None:
        self.removed.append({"split": split, "file": self.name(file), "reason": reason, "detail": detail})

    def check_limit(self) -> int:
        """How many of the files or rows that came in are samples; raises DataError where too many are left out."""
        samples, skipped = max(1, self.came_in - self.num_ignored), len(self.skipped)
        if skipped and self.invalid == "error":
            more = f"; {skipped - 1} more of {samples} cannot be used" if skipped > 1 else ""
            what = f"leave {'them' if more else 'it'} out with --data.invalid skip"
            raise DataError(f"{self.skipped[0]}{more} -> {self.hint}, or {what}", self.removed)
        if skipped > self.max_skipped_frac * samples:
            raise DataError(
                f"{skipped} of {samples} samples cannot be used, more than data.max_skipped_frac "
                f"{self.max_skipped_frac}; the first is {self.skipped[0]} -> mend them, or raise the limit",
                self.removed,
            )
        return samples

    def report(self) -> dict[str, Any]:
        samples = self.check_limit()
        counts = Counter(r["reason"] for r in self.removed)
        return {
            "came_in": self.came_in,
            "removed_counts": dict(counts.most_common()),
            "data/missing_frac": len(self.skipped) / samples,
            "data/duplicate_frac": sum(counts[r] for r in DUPLICATES) / samples,
            "note": "; ".join(self.notes),
            "removed": self.removed,
        }


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Half the summed difference of two histograms' shares: 0 where they agree, 1 where they have nothing in common."""
    return float(np.abs(a / max(1, a.sum()) - b / max(1, b.sum())).sum() / 2)


def class_counts(targets: np.ndarray, num_classes: int = 0) -> np.ndarray:
    """Samples of each class [num_classes], of targets [N], -1 where unknown."""
    return np.bincount(targets[targets >= 0], minlength=num_classes)


def stored_as(report: dict[str, Any], split: str) -> str:
    """The split whose prepared arrays are those of this one, too."""
    return report[split].get("same_as", split)


def lines(report: dict[str, Any], file: str = "data_report.json") -> dict[str, str]:
    """The report in short, for the terminal; `file` has all of it."""
    out = {}
    if report.get("removed"):
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in report["removed_counts"].items())
        out["left out"] = f"{len(report['removed']):,} of {report['came_in']:,}: {reasons} ({file})"
    if report.get("note"):
        out["note"] = report["note"]
    if report.get("shift"):
        largest = {k: max(np.atleast_1d(value).tolist(), key=abs) for k, value in report["shift"]["test"].items()}
        found = [f"{name.replace('_', ' ')} {value:.2g}" for name, value in largest.items()]
        out["shift"] = f"test against train: {', '.join(found)}"
    return out


def table(report: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the splits, for W&B."""
    names = [name for name in report["train"] if np.isscalar(report["train"][name])]
    wide = [name for name in ("mean", "std", "per_class") if name in report["train"]]
    rows = [[split, *(report[split][n] for n in names), *(str(report[split][n]) for n in wide)] for split in SPLITS]
    return ["split", *names, *wide], rows
