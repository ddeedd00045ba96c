"""Random changes of training windows, each with its own draw, applied to a whole batch on its device. The numbers are
a function of (seed, epoch, window, operation): a resumed run makes the same windows."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from src.data.order import uniform
from src.run.errors import ConfigError


class Augmentation(ABC):
    """An operation on standardized windows.

    Args:
        std: of its normal draws, in standard deviations of a column in train.
    """

    def __init__(self, std: float = 0.1) -> None:
        if not 0 <= std < 10:
            raise ConfigError(f"{type(self).__name__}.std: {std} is not from 0 to 10")
        self.std = std

    @abstractmethod
    def __call__(self, x: Tensor, targets: Tensor, draw: "Normals") -> tuple[Tensor, Tensor]:
        """x [N, window, C] and targets [N, horizon, out_channels], of which x has the past in its first columns."""


class Normals:
    """Normal numbers that belong to the windows `index` [N], wherever and whenever they are drawn."""

    def __init__(self, index: Tensor, seed: int, epoch: int, operation: int) -> None:
        self.index, self.where = index, (seed, epoch, operation)

    def normal(self, *shape: int) -> Tensor:
        """[N, *shape]"""
        seed, epoch, operation = self.where
        u = uniform(seed, epoch, self.index, operation, int(torch.Size(shape).numel()))
        return (torch.erfinv((2 * u - 1).clamp(min=-1 + 2.0**-23)) * 2**0.5).unflatten(1, shape)


class Jitter(Augmentation):
    """Add noise to each value that is seen; what is to be forecast stays."""

    def __call__(self, x: Tensor, targets: Tensor, draw: Normals) -> tuple[Tensor, Tensor]:
        return x + self.std * draw.normal(*x.shape[1:]), targets


class Scaling(Augmentation):
    """Multiply each column of a window, and its targets alike, by a number around 1."""

    def __call__(self, x: Tensor, targets: Tensor, draw: Normals) -> tuple[Tensor, Tensor]:
        factor = 1 + self.std * draw.normal(1, x.shape[2])
        return x * factor, targets * factor[..., : targets.shape[2]]
