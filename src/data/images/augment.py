"""Random changes of images, each sample with its own draw, applied to a whole batch on its device.

An operation says how many random numbers a sample needs (`draws`) and turns images and numbers into images. The numbers
are a function of (seed, epoch, sample, operation): a resumed run, or one on other devices, makes the same images.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.order import uniform
from src.run.errors import ConfigError


def within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: {value} is not from {low} to {high}")


class Augmentation(ABC):
    """One operation on float images in [0, 1]."""

    draws: int

    @abstractmethod
    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """x [N, C, H, W] and u [N, draws] in [0, 1) -> [N, C, H, W]."""

    def numbers(self, index: Tensor, seed: int, epoch: int, operation: int) -> Tensor:
        """u [N, draws] of the samples `index` [N]."""
        return uniform(seed, epoch, index, operation, self.draws)


class Flip(Augmentation):
    """Mirror left and right.

    Args:
        p: share of the samples that are mirrored.
        alternate: a sample that is mirrored in one epoch is not in the next, so that two epochs show both of its
            sides (Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024).
    """

    draws = 1

    def __init__(self, p: float = 0.5, alternate: bool = False) -> None:
        within("Flip.p", p, 0, 1)
        self.p, self.alternate = p, alternate

    def numbers(self, index: Tensor, seed: int, epoch: int, operation: int) -> Tensor:
        if not self.alternate:
            return super().numbers(index, seed, epoch, operation)
        u = uniform(seed, 0, index, operation, 1)
        return (u < self.p).float() if epoch % 2 else u  # 1 is not below p, and 0 is

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.where((u < self.p)[:, :, None, None], x.flip(3), x)


class Crop(Augmentation):
    """Pad, and cut the image's own size out of that at a random place.

    Args:
        padding: pixels added on each side.
        mode: what is added: zeros, or the image mirrored at its edge.
    """

    draws = 2

    def __init__(self, padding: int = 4, mode: Literal["zeros", "reflect"] = "zeros") -> None:
        self.padding, self.mode = padding, mode

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        smallest = min(x.shape[2:])
        if not 0 <= self.padding < smallest:
            raise ConfigError(f"Crop.padding: {self.padding} for images of {smallest} -> take 0 to {smallest - 1}")
        padded = F.pad(x, [self.padding] * 4, mode="reflect" if self.mode == "reflect" else "constant")
        windows = padded.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)  # a view: [N, C, places, places, H, W]
        top, left = (u * (2 * self.padding + 1)).long().unbind(1)
        return windows[torch.arange(len(x), device=x.device), :, top, left]


class Affine(Augmentation):
    """Rotate, scale and shift, with bilinear sampling; what comes in from outside is zero.

    Args:
        degrees: largest rotation, either way.
        scale: largest relative change of size; 0.1 is from 0.9 to 1.1 times.
        translate: largest shift as a share of the image, in each direction.
    """

    draws = 4

    def __init__(self, degrees: float = 0.0, scale: float = 0.0, translate: float = 0.0) -> None:
        within("Affine.scale", scale, 0, 0.99)  # at 1 the image is gone
        self.degrees, self.scale, self.translate = degrees, scale, translate

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        angle, scale, dx, dy = (u * 2 - 1).unbind(1)
        angle, scale = angle * math.radians(self.degrees), 1 + scale * self.scale
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        aspect = x.shape[2] / x.shape[3]  # so that a turn keeps right angles where the image is not square
        dx, dy = 2 * dx * self.translate, 2 * dy * self.translate  # in half images from the centre
        matrix = torch.stack([cos, -sin * aspect, dx, sin / aspect, cos, dy], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)  # [N, H, W, 2]: where in x each pixel is from
        return F.grid_sample(x, grid, align_corners=False)


class Color(Augmentation):
    """Change brightness, contrast and saturation, in this order, as torchvision's functions of these names do.

    Args:
        brightness: largest relative change; 0.4 is a factor from 0.6 to 1.4.
        contrast: the same, of the distance to the image's mean grey.
        saturation: the same, of the distance to each pixel's grey; without effect on grey images.
    """

    draws = 3

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> None:
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        brightness, contrast, saturation = (u * 2 - 1).unbind(1)
        if self.brightness:
            x = blend(x, 0.0, 1 + self.brightness * brightness)
        if self.contrast:
            x = blend(x, grey(x).mean((2, 3), keepdim=True), 1 + self.contrast * contrast)
        return blend(x, grey(x), 1 + self.saturation * saturation) if self.saturation else x


class Erasing(Augmentation):
    """Fill a rectangle with the image's mean color (Zhong et al., Random Erasing Data Augmentation, 2017).

    Args:
        p: share of the samples that lose one.
        area: least and largest area, as a share of the image.
        ratio: least and largest height over width; what would stand out is cut off.
    """

    draws = 5

    def __init__(
        self, p: float = 0.5, area: tuple[float, float] = (0.02, 0.33), ratio: tuple[float, float] = (0.3, 3.3)
    ) -> None:
        within("Erasing.p", p, 0, 1)
        for k in (0, 1):
            within("Erasing.area", area[k], 0, 1)
            within("Erasing.ratio", ratio[k], 0.01, 100)
        self.p, self.area, self.ratio = p, area, ratio

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        area = self.area[0] + u[:, 1] * (self.area[1] - self.area[0])
        low, high = map(math.log, self.ratio)
        ratio = torch.exp(low + u[:, 2] * (high - low))
        inside = []  # for each side of the image, its pixels that the rectangle covers: [N, pixels]
        for pixels, share, offset in ((x.shape[2], area * ratio, u[:, 3]), (x.shape[3], area / ratio, u[:, 4])):
            size = (share.sqrt() * pixels).round().clamp(max=pixels)
            start = (offset * (pixels - size + 1)).floor()
            i = torch.arange(pixels, device=x.device)
            inside.append((i >= start[:, None]) & (i < (start + size)[:, None]))
        rectangle = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # [N, 1, H, W]
        erased = rectangle & (u[:, 0] < self.p)[:, None, None, None]
        return torch.lerp(x, x.mean((2, 3), keepdim=True), erased.float())


def grey(x: Tensor) -> Tensor:
    """x [N, C, H, W] -> [N, 1, H, W]; of three channels with the weights of ITU-R BT.601."""
    return 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:] if x.shape[1] == 3 else x.mean(1, keepdim=True)


def blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """From `other` (factor 0) to x (factor 1) and beyond, in [0, 1]; factor [N]."""
    factor = factor[:, None, None, None]
    return (x * factor).add_(other * (1 - factor)).clamp_(0, 1)


def augment(x: Tensor, index: Tensor, operations: list[Augmentation], seed: int, epoch: int) -> Tensor:
    """Apply the operations in turn to x [N, C, H, W], with the random numbers of the samples `index` [N]."""
    for i, operation in enumerate(operations):
        x = operation(x, operation.numbers(index, seed, epoch, i))
    return x
