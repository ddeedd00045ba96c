"""Pictures of what was measured; one whose numbers are missing is left out."""

from typing import Any

import numpy as np

from src.loggers.curves import curves
from src.run.figures import figure

SIDES = (("before", "#0072B2", "o"), ("after", "#D55E00", "s"))  # colours of Okabe and Ito, which all can tell apart


def pictures(known: dict[str, Any]) -> dict[str, Any]:
    """Of `curves`, metric -> steps and values, with `marks`, name -> step; of `rates` with `losses`, `config` and
    `suggested`; of `trials`, with the scores `before` and `after` of each seed."""
    found: dict[str, Any] = {}
    losses = {name: curve for name, curve in (known.get("curves") or {}).items() if name.endswith("/loss")}
    if run := {name: (np.array(x), np.array(y, float)) for name, (x, y) in losses.items()}:
        found["learning curves"] = curves({"": [run]})
        for axes in found["learning curves"].axes:
            mark(axes, {f"{name}: {step:,.0f}": step for name, step in known.get("marks", {}).items()})
    if rates := known.get("rates"):
        fig = found["learning rates"] = figure(6.4, 3.6)
        (axes := fig.subplots()).set(xlabel="learning rate", ylabel="loss", xscale="log")
        axes.plot(rates["rates"], np.array(rates["losses"], float), color=SIDES[0][1], label="loss, smoothed")
        mark(axes, {f"{name}: {rates[name]:.2g}": rates[name] for name in ("config", "suggested") if rates.get(name)})
    if tried := [one for one in known.get("trials") or () if one["before"] and None not in one["before"]]:
        fig = found["changes that were tried"] = figure(6.4, 1.4 + 0.35 * len(tried))
        (axes := fig.subplots()).set(xlabel="score over that before, less is better", ylim=(len(tried) + 0.5, 0.5))
        axes.set_yticks(range(1, len(tried) + 1), [one["check"] for one in tried])
        for number, one in enumerate(tried, 1):
            for shift, (side, color, shape) in zip((-0.1, 0.1), SIDES, strict=True):
                x = np.array(one[side], float) / abs(np.mean(one["before"]))
                axes.plot(x, [number + shift] * len(x), shape, color=color, label=side if number == 1 else None)
        mark(axes, {})
    return found


def mark(axes: Any, marks: dict[str, float]) -> None:
    for (name, x), style in zip(marks.items(), ("--", ":", "-.", "-"), strict=False):
        axes.axvline(x, color="black", linestyle=style, linewidth=1, label=name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
