from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width, added to what comes in."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        if bottleneck:
            layers = [conv_norm(channels, width, 1), conv_norm(width, width, 3, stride), conv_norm(width, out, 1)]
        else:
            layers = [conv_norm(channels, width, 3, stride), conv_norm(width, out, 3)]
        self.layers = nn.ModuleList(layers)
        self.shortcut = conv_norm(channels, out, 1, stride) if stride != 1 or channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers[:-1]:
            y = F.relu(layer(y))
        return F.relu(self.layers[-1](y) + (x if self.shortcut is None else self.shortcut(x)))


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
    """Residual network (He et al., Deep Residual Learning, 2016; the stride of a bottleneck is on its 3x3 convolution).

    With the large stem, depths 2-2-2-2 give ResNet-18, and 3-4-6-3 with bottlenecks ResNet-50, as in torchvision.

    Args:
        depths: blocks of each stage; all stages but the first halve the image.
        widths: channels of each stage; blocks with bottleneck give four times as many.
        bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions in place of two 3x3.
        stem: `small` is a 3x3 convolution; `large`, for images from about 100 pixels, a 7x7 of stride 2 and a pooling.
        pool: halve the image by a 3x3 convolution and max-pooling before a stage's blocks, not by the stride of the
            first one: with depths 0-1-0-1 a ResNet-9 (Page, How to train your ResNet, 2018).
        zero_init: begin with each block passing on its input (Goyal et al., 2017).
        num_classes, in_channels: of the data.

    Shapes: x [N, in_channels, height, width] -> logits [N, num_classes].

    Raises:
        ValueError: `depths` and `widths` differ in length.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        bottleneck: bool = False,
        stem: Literal["small", "large"] = "small",
        pool: bool = False,
        zero_init: bool = True,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if len(depths) != len(widths):
            raise ValueError(f"{len(depths)} depths but {len(widths)} widths: give one of each for a stage")
        large = stem == "large"
        self.stem = conv_norm(in_channels, widths[0], 7 if large else 3, 2 if large else 1)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        self.blocks = nn.ModuleList()
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if pool and stage > 0:
                self.blocks.append(Halving(channels, width))
                channels = width
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 and not pool else 1
                self.blocks.append(Block(channels, width, stride, bottleneck))
                channels = 4 * width if bottleneck else width
        self.head = nn.Linear(channels, num_classes)
        for block in self.blocks:
            if zero_init and isinstance(block, Block):
                nn.init.zeros_(block.layers[-1][1].weight)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        for block in self.blocks:
            x = block(x)  # [N, channels, height, width of the stage]
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
