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
Groups = Mapping[str, Sequence[Mapping[str, Curve]]]  # by label; the runs of one are drawn as their mean and range
DENSE = 5000  # points of a line from which on it is pixels within a drawing


def read_curves(run_dir: Path, kinds: tuple[str, ...], axis: str = "step") -> dict[str, Curve]:
    """Each metric whose name begins with one of `kinds`, over a column, where a row has both."""
    points: dict[str, list[Any]] = {}
    for row in whole_rows(run_dir / "metrics.csv"):
        for name, value in row.items():
            if name.startswith(kinds) and None not in (point := (number(row.get(axis)), number(value))):
                points.setdefault(name, []).append(point)
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}


def whole_rows(path: Path) -> list[dict[str, str]]:
    """Without a last row that is only begun, and what is no row at all."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as f:
        rows = list(csv.DictReader(line.replace("\0", "") for line in f if line.endswith("\n")))
    return [row for row in rows if None not in row and None not in row.values() and row.get("step", "").isdecimal()]


def number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def kinds(runs: Groups) -> list[str]:
    """What was measured of training or validation (loss, acc, ...)."""
    names = {name for group in runs.values() for run in group for name in run if name.startswith(("train/", "val/"))}
    return sorted({name.partition("/")[2] for name in names}, key=lambda kind: (kind != "loss", kind))


def curves(runs: Groups, label: str = "optimizer step") -> "Figure":
    """A panel for each kind of metric, a line for each group of runs; `label` is of the horizontal axis."""
    drawn = kinds(runs) or [""]
    fig = figure(6.4, 3.6 * len(drawn))
    for axes, kind in zip(np.atleast_1d(fig.subplots(len(drawn))), drawn, strict=True):
        panel(axes, kind, runs, label)
    return fig


def panel(axes: "Axes", kind: str, runs: Groups, label: str) -> None:
    several = len(runs) > 1
    for color, (name, group) in enumerate(runs.items()):
        for split, style in (("train", "-"), ("val", "--")):
            drawn = [run[f"{split}/{kind}"] for run in group if f"{split}/{kind}" in run]
            if drawn:
                text = f"{name} {split}" if several else split
                band(axes, drawn, text, f"C{color if several else int(split == 'val')}", style)
    axes.set(title=kind, xlabel=label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")


def band(axes: "Axes", drawn: list[Curve], label: str, color: str, style: str) -> None:
    """The mean of several curves and, behind it, their range, as far as all of them go."""
    low, high = (f(x[end] for x, _ in drawn) for f, end in ((max, 0), (min, -1)))
    x, _ = drawn[0]
    x = x[(x >= low) & (x <= high)] if len(drawn) > 1 else x
    values = np.stack([np.interp(x, *curve) if len(drawn) > 1 else curve[1] for curve in drawn])
    marker = "." if len(x) < 3 else None
    (line,) = axes.plot(x, values.mean(0), style, color=color, label=label, marker=marker, rasterized=len(x) > DENSE)
    if len(drawn) > 1:
        axes.fill_between(x, values.min(0), values.max(0), alpha=0.2, color=line.get_color(), linewidth=0)
