"""Metrics over the steps: read from a run's metrics.csv, and drawn."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Curve = tuple[np.ndarray, np.ndarray]  # steps [T], values [T]


def whole_rows(path: Path) -> list[dict[str, str]]:
    """Without a last row that is only begun, and what is no row at all."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as f:
        rows = list(csv.DictReader(line.replace("\0", "") for line in f if line.endswith("\n")))
    return [row for row in rows if None not in row and None not in row.values() and row.get("step", "").isdecimal()]


def curves(runs: Mapping[str, Sequence[Mapping[str, Curve]]]) -> "Figure":
    """A panel for each kind of metric (loss, acc, ...) of training and validation, a line for each group of runs.

    Args:
        runs: by label; the runs of one label differ in their seed only, and are drawn as their mean and range.
    """
    names = {name for group in runs.values() for run in group for name in run if name.startswith(("train/", "val/"))}
    kinds = sorted({name.partition("/")[2] for name in names}, key=lambda kind: (kind != "loss", kind))
    fig, several = figure(6.4, 3.6 * max(1, len(kinds))), len(runs) > 1
    for axes, kind in zip(np.atleast_1d(fig.subplots(max(1, len(kinds)))), kinds, strict=False):
        for color, (label, group) in enumerate(runs.items()):
            for split, style in (("train", "-"), ("val", "--")):
                drawn = [run[f"{split}/{kind}"] for run in group if f"{split}/{kind}" in run]
                if drawn:
                    text = f"{label} {split}" if several else split
                    band(axes, drawn, text, f"C{color if several else int(split == 'val')}", style)
        axes.set(title=kind, xlabel="optimizer step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return fig


def band(axes: "Axes", drawn: list[Curve], label: str, color: str, style: str) -> None:
    """The mean of several curves and, behind it, their range."""
    length = min(len(steps) for steps, _ in drawn)
    steps, values = drawn[0][0][:length], np.stack([v[:length] for _, v in drawn])
    (line,) = axes.plot(steps, values.mean(0), style, color=color, label=label, marker="." if length < 3 else None)
    if len(drawn) > 1:
        axes.fill_between(steps, values.min(0), values.max(0), alpha=0.2, color=line.get_color(), linewidth=0)
