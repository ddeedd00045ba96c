"""Training images as the network sees them, for `samples.png`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8


def images(x: np.ndarray, titles: Sequence[str]) -> "Figure":
    """x [N, C, H, W] in any range; each channel is stretched over all images. Where they are not 1 or 3, their mean.

    One array with all images is drawn at once: an axes for each would take seconds.
    """
    x = x if x.shape[1] in (1, 3) else x.mean(1, keepdims=True)
    low, high = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.min, np.max))
    shown = ((x - low) / np.maximum(high - low, 1e-8)).transpose(0, 2, 3, 1)
    height, width, channels = shown.shape[1:]
    gap, top = -(-width // 12), -(-height // 4)  # pixels between the images, and above each for its title
    columns, lines = min(COLUMNS, len(x)), -(-len(x) // COLUMNS)
    canvas = np.ones((lines * (top + height), columns * (width + gap), channels))
    fig = figure(columns, 1.25 * lines * height / width)
    axes = fig.add_subplot()
    axes.set_axis_off()
    for i, (image, title) in enumerate(zip(shown, titles, strict=True)):
        line, column = divmod(i, columns)
        y, left = line * (top + height) + top, column * (width + gap)
        canvas[y : y + height, left : left + width] = image
        x_title, y_title = left + width / 2 - 0.5, y - 0.5 - top / 10
        axes.text(x_title, y_title, title, size=8, ha="center", va="bottom", parse_math=False)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1)
    return fig
