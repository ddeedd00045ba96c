from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions, added to what comes in; at the start it passes that on (Goyal et al., 2017)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv_norm(channels, width, 3, stride), conv_norm(width, width, 3)])
        self.shortcut = conv_norm(channels, width, 1, stride) if stride != 1 or channels != width else None
        nn.init.zeros_(self.layers[-1][1].weight)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[1](F.relu(self.layers[0](x)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Halving(nn.Module):
    """A 3x3 convolution whose result is pooled to half its height and width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(channels, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(F.max_pool2d(self.conv(x), 2, ceil_mode=True)))


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Residual network (He et al., Deep Residual Learning, 2016) with a 3x3 stem, for images of up to some 100 pixels.

    For larger ones, and with bottlenecks, take torchvision.models.resnet18 or resnet50.

    Args:
        depths: blocks of each stage; all stages but the first halve the image.
        widths: channels of each stage.
        pool: halve the image by a 3x3 convolution and max-pooling before a stage's blocks, not by the stride of the
            first one: with depths 0-1-0-1 a ResNet-9 (Page, How to train your ResNet, 2018).
        num_classes, in_channels: of the data.

    Shapes: x [N, in_channels, height, width] -> logits [N, num_classes].
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        pool: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if len(depths) != len(widths):
            raise ValueError(f"{len(depths)} depths but {len(widths)} widths: give one of each for a stage")
        self.stem = conv_norm(in_channels, widths[0], 3)
        self.blocks = nn.ModuleList()
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if pool and stage > 0:
                self.blocks.append(Halving(channels, width))
                channels = width
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 and not pool else 1
                self.blocks.append(Block(channels, width, stride))
                channels = width
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)  # [N, channels, height, width of the stage]
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
