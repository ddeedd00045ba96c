from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CNN(nn.Module):
    """3x3 convolutions with ReLU and 2x2 max-pooling between them, then one dense layer and the classes.

    By default it is the well-known beginner's CNN: convolutions 32-64-64, dense 64, 10 classes.

    Args:
        widths: channels of each convolution.
        hidden: units of the dense layer.
        dropout: share of the dense layer's inputs and outputs zeroed in training.
        padding: pixels of zeros round each convolution's input; 1 keeps the size, which small images need.
        batch_norm: normalize each convolution's output over the batch.
        num_classes, in_channels, image_size: of the data; `image_size` is height and width in pixels.

    Shapes: x [N, in_channels, height, width] -> logits [N, num_classes].
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 64),
        hidden: int = 64,
        dropout: float = 0.0,
        padding: int = 0,
        batch_norm: bool = False,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
    ) -> None:
        super().__init__()
        channels, size = [in_channels, *widths], list(image_size)
        self.blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            layers: list[nn.Module] = [nn.Conv2d(channels[i], width, 3, padding=padding, bias=not batch_norm)]
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            # ReLU of the largest is the largest of the ReLU, to the bit, and takes a quarter of the time.
            layers += [nn.ReLU()] if last else [nn.MaxPool2d(2), nn.ReLU()]
            self.blocks.append(nn.Sequential(*layers))
            size = [(s - 2 + 2 * padding) // (1 if last else 2) for s in size]
        if min(size) < 1:
            raise ValueError(f"{len(widths)} widths are too many for images of {image_size}: take fewer, or padding 1")
        features = channels[-1] * size[0] * size[1]
        dense = [nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU()]
        self.head = nn.Sequential(*dense, nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)  # [N, width, height, width of the image]
        return self.head(torch.flatten(x, 1))
