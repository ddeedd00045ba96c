"""Training windows as text, for `samples.png`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def text(samples: Sequence[str]) -> "Figure":
    """Each sample as one line; line ends are shown as ⏎."""
    fig = figure(10, 0.3 * len(samples) + 0.2)
    for i, sample in enumerate(samples):
        shown, y = sample.replace("\n", "⏎")[:110], 1 - (i + 0.5) / len(samples)
        fig.text(0.01, y, shown, family="monospace", size=8, va="center", parse_math=False)
    return fig
