from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion(counts: np.ndarray, names: Sequence[str]) -> "Figure":
    """counts [num_classes, num_classes], rows are targets; each row is coloured by its shares.

    Source: the usual confusion matrix, as in scikit-learn's ConfusionMatrixDisplay.
    """
    size = len(counts)
    fig = figure(*[min(14.0, 3.0 + 0.4 * size)] * 2)
    axes = fig.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="targets against predictions, test", xlabel="prediction", ylabel="target")
    if size <= 30:
        turn = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(size), names, rotation=turn, parse_math=False)
        axes.set_yticks(range(size), names, parse_math=False)
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(j, i, counts[i, j], ha="center", va="center", color="w" if shares[i, j] > 0.5 else "k", size=8)
    return fig
