"""Random changes of images, each sample with its own draw, applied to a whole batch on its device.

An operation says how many random numbers a sample needs (`draws`) and turns images and numbers into images. The numbers
are a function of (seed, epoch, sample, operation): a resumed run, or one on other devices, makes the same images.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.order import uniform


class Augmentation(ABC):
    """One operation on float images in any range."""

    draws: int

    @abstractmethod
    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """x [N, C, H, W] and u [N, draws] in [0, 1) -> [N, C, H, W]."""


class Flip(Augmentation):
    """Mirror left and right.

    Args:
        p: share of the samples that are mirrored.
    """

    draws = 1

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.where(u[:, :, None, None] < self.p, x.flip(-1), x)


class Affine(Augmentation):
    """Rotate, scale and shift, with bilinear sampling; what comes in from outside is zero.

    Args:
        degrees: largest rotation, either way.
        scale: largest relative change of size; 0.1 is from 0.9 to 1.1 times.
        translate: largest shift as a share of the image, in each direction.
    """

    draws = 4

    def __init__(self, degrees: float = 0.0, scale: float = 0.0, translate: float = 0.0) -> None:
        self.degrees, self.scale, self.translate = degrees, scale, translate

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        angle, scale, dx, dy = (u * 2 - 1).unbind(1)
        angle, scale = angle * math.radians(self.degrees), 1 + scale * self.scale
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rows = torch.stack([cos, -sin, 2 * dx * self.translate, sin, cos, 2 * dy * self.translate], dim=1)
        grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)  # [N, H, W, 2]
        return F.grid_sample(x, grid, align_corners=False)


def augment(x: Tensor, index: Tensor, operations: list[Augmentation], seed: int, epoch: int) -> Tensor:
    """Apply the operations in turn to x [N, C, H, W], with the random numbers of the samples `index` [N]."""
    for i, operation in enumerate(operations):
        x = operation(x, uniform(seed, epoch, index, i, operation.draws))
    return x
