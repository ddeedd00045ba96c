"""Metrics over steps, samples, time or operations: read from a run's metrics.csv, and drawn."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Curve = tuple[np.ndarray, np.ndarray]  # steps, or another axis [T], values [T]
Groups = Mapping[str, Sequence[Mapping[str, Curve]]]
AXES = {"step": ("step", "optimizer step"), "samples": ("perf/samples", "samples")}  # column, what is said of it
AXES |= {"time": ("perf/seconds", "seconds"), "flops": ("perf/flops", "operations (3 x forward)")}


def read_curves(run_dir: Path, kinds: tuple[str, ...], axis: str = "step") -> dict[str, Curve]:
    """Each metric whose name begins with one of `kinds`, over a column, where a row has both."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in whole_rows(run_dir / "metrics.csv"):
        for name, value in row.items():
            if value and name.startswith(kinds) and row.get(axis):
                points.setdefault(name, []).append((float(row[axis]), float(value)))
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}


def whole_rows(path: Path) -> list[dict[str, str]]:
    """Without a last row that is only begun, and what is no row at all."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as f:
        rows = list(csv.DictReader(line.replace("\0", "") for line in f if line.endswith("\n")))
    return [row for row in rows if None not in row and None not in row.values() and row.get("step", "").isdecimal()]


def curves(runs: Groups, label: str = "optimizer step") -> "Figure":
    """A panel for each kind of metric (loss, acc, ...) of training and validation, a line for each group of runs.

    Args:
        runs: by label; the runs of one label are drawn as their mean and range.
        label: of the horizontal axis.
    """
    kinds = kinds_of(runs) or [""]
    fig, several = figure(6.4, 3.6 * len(kinds)), len(runs) > 1
    for axes, kind in zip(np.atleast_1d(fig.subplots(len(kinds))), kinds, strict=True):
        for color, (name, group) in enumerate(runs.items()):
            for split, style in (("train", "-"), ("val", "--")):
                drawn = [run[f"{split}/{kind}"] for run in group if f"{split}/{kind}" in run]
                if drawn:
                    text = f"{name} {split}" if several else split
                    band(axes, drawn, text, f"C{color if several else int(split == 'val')}", style)
        axes.set(title=kind, xlabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small", ncols=1 + len(axes.lines) // 12)  # a taller one leaves no room for the curves
    return fig


def kinds_of(runs: Groups) -> list[str]:
    names = {name for group in runs.values() for run in group for name in run if name.startswith(("train/", "val/"))}
    return sorted({name.partition("/")[2] for name in names}, key=lambda kind: (kind != "loss", kind))


def band(axes: "Axes", drawn: list[Curve], label: str, color: str, style: str) -> None:
    """The mean of several curves and, behind it, their range, as far as all of them go."""
    x = drawn[0][0]
    x = x[(x >= max(other[0] for other, _ in drawn)) & (x <= min(other[-1] for other, _ in drawn))]
    values = np.stack([np.interp(x, *curve) for curve in drawn])
    how: dict[str, Any] = {"marker": "." if len(x) < 3 else None, "rasterized": len(x) > 5000}  # pixels in a report
    (line,) = axes.plot(x, values.mean(0), style, color=color, label=label, **how)
    if len(drawn) > 1:
        axes.fill_between(x, values.min(0), values.max(0), alpha=0.2, color=line.get_color(), linewidth=0)
