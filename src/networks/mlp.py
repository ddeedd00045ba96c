import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU on all numbers of a sample.

    Args:
        widths: units of each hidden layer.
        dropout: share of hidden units zeroed in training.
        num_classes, in_channels, image_size: of the data; `image_size` is height and width in pixels.
        in_features: of data that are no images, in place of these: the numbers of a sample.

    Shapes: x [N, in_features] or [N, in_channels, height, width] -> logits [N, num_classes].
    """

    def __init__(
        self,
        widths: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        in_features: int | None = None,
    ) -> None:
        super().__init__()
        sizes = [in_features or in_channels * math.prod(image_size), *widths]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(sizes)
        )
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
