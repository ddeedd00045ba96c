"""Figures drawn with matplotlib, without a display."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # takes half a second to load

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def save(fig: "Figure", path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    tmp = path.with_name(path.name + ".tmp")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that matplotlib's font lacks, one for each letter
        fig.savefig(tmp, format="png")
    tmp.rename(path)
