from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def images(x: np.ndarray, titles: Sequence[str]) -> "Figure":
    """x [N, C, H, W] in any range; each channel is stretched over all images. Where they are not 1 or 3, their mean."""
    x = x if x.shape[1] in (1, 3) else x.mean(1, keepdims=True)
    low, high = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.min, np.max))
    shown = ((x - low) / np.maximum(high - low, 1e-8)).transpose(0, 2, 3, 1)
    columns = min(8, len(x))
    lines = -(-len(x) // columns)
    fig = figure(columns, 1.25 * lines)
    for axes, image, title in zip(fig.subplots(lines, columns, squeeze=False).flat, shown, titles, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8, parse_math=False)
    for axes in fig.axes:
        axes.set_axis_off()
    return fig
