"""Training images as the network sees them, for `samples.png`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8


def images(x: Tensor, titles: Sequence[str]) -> "Figure":
    """x [N, C, H, W] in any range; each channel is stretched over all images. Where they are not 1 or 3, their mean.

    One array with all images is drawn at once: an axes for each would take seconds.
    """
    from torchvision.utils import make_grid

    x = x if x.shape[1] in (1, 3) else x.mean(1, keepdim=True)
    low, high = (f(x, (0, 2, 3), keepdim=True) for f in (Tensor.amin, Tensor.amax))
    height, width = x.shape[2:]
    gap = -(-height // 4)  # pixels around each image, with room for its title
    grid = make_grid([*(x - low) / (high - low).clamp(min=1e-8)], COLUMNS, gap, pad_value=1)  # [3, height, width]
    fig = figure(min(COLUMNS, len(x)), 1.25 * -(-len(x) // COLUMNS) * height / width)
    axes = fig.add_subplot()
    axes.set_axis_off()
    axes.imshow(grid.permute(1, 2, 0).numpy())
    for i, title in enumerate(titles):
        line, column = divmod(i, COLUMNS)
        x_title = gap + column * (width + gap) + width / 2 - 0.5
        y_title = gap + line * (height + gap) - 0.5 - gap / 10
        axes.text(x_title, y_title, title, size=8, ha="center", va="bottom", parse_math=False)
    return fig
