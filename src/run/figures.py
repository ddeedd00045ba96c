"""Figures drawn with matplotlib, without a display."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # takes half a second to load

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def drawn(fig: "Figure", kind: str) -> bytes:
    """A file of this kind, such as png."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that matplotlib's font lacks, one for each letter
        fig.savefig(file := BytesIO(), format=kind)
    return file.getvalue()


def save(fig: "Figure", path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_bytes(drawn(fig, "png"))
    tmp.rename(path)
