"""Pictures of what was measured; one whose numbers are missing is left out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from src.loggers.curves import curves, kinds_of
from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = (("#0072B2", "o"), ("#D55E00", "s"))  # colours of Okabe and Ito, which all can tell apart
STYLES = ("--", ":", "-.", "-")
MOST_KINDS = 2  # of metrics


def pictures(known: dict[str, Any]) -> "dict[str, Figure]":
    """Of `curves`, metric -> steps and values, and `marks`, name -> step; of `trials`, with the scores `before` and
    `after` of each seed; of `rates` with `losses` and `marks`; of `layers`, name -> `gradient` and `update`."""
    found = {}
    if known.get("curves"):
        run = {name: (np.array(x, float), np.array(y, float)) for name, (x, y) in known["curves"].items()}
        kinds = kinds_of({"": [run]})[:MOST_KINDS]
        fig = curves({"": [{name: curve for name, curve in run.items() if name.partition("/")[2] in kinds}]})
        for axes in fig.axes:
            mark(axes, {f"{name} {step:,.0f}": step for name, step in known.get("marks", {}).items()})
        found["learning curves"] = fig
    if tried := [one for one in known.get("trials", ()) if np.isfinite(one["before"] or np.nan).all()]:
        means = {side: [np.array(one[side], float) / abs(np.mean(one["before"])) for one in tried] for side in SCORES}
        found["changes that were tried"] = dots(
            means, [one["check"] for one in tried], "score, of that before; less is better"
        )
    if rates := known.get("rates"):
        fig = found["learning rates"] = figure(6.4, 3.6)
        axes = fig.subplots()
        axes.semilogx(rates["rates"], np.array(rates["losses"], float), "o-", color=SIDES[0][0], label="loss")
        mark(axes, {f"{name} {rate:.2g}": rate for name, rate in rates.get("marks", {}).items()})
        axes.set(xlabel="learning rate")
    if layers := known.get("layers"):
        ratios = {f"{kind} / weights": [[one.get(kind) or np.nan] for one in layers.values()] for kind in RATIOS}
        found["gradients and updates"] = dots(ratios, [*layers], "ratio of their norms")
        found["gradients and updates"].axes[0].set_xscale("log")
    return found


SCORES, RATIOS = ("before", "after"), ("gradient", "update")


def dots(sides: Mapping[str, Sequence[Sequence[float]]], names: list[str], label: str) -> "Figure":
    """A row for each name, of each side one below the other."""
    fig = figure(6.4, 1.4 + 0.3 * len(names))
    axes = fig.subplots()
    for shift, ((side, rows), (color, mark_)) in zip(
        (-0.15, 0.15), zip(sides.items(), SIDES, strict=True), strict=True
    ):
        points = [(x, y + shift) for y, values in enumerate(rows) for x in values]
        axes.plot(*zip(*points, strict=True), mark_, color=color, label=side, alpha=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    mark(axes, {})
    return fig


def mark(axes: Any, marks: dict[str, float]) -> None:
    for (name, x), style in zip(marks.items(), STYLES, strict=False):
        axes.axvline(x, color="black", linestyle=style, linewidth=1, label=name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
