"""Random changes of training windows, each with its own draw, applied to a whole batch on its device. The numbers are
a function of (seed, epoch, window, operation): a resumed run makes the same windows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from src.data.order import uniform
from src.run.errors import ConfigError

Normal = Callable[..., Tensor]  # shape -> [N, *shape]


class Augmentation(ABC):
    """An operation on standardized windows x [N, window, C] and targets [N, horizon, out_channels], of which x has the
    past in its first columns.

    Args:
        std: of its normal draws, in standard deviations of a column in train.
    """

    def __init__(self, std: float = 0.1) -> None:
        if not 0 <= std < 10:
            raise ConfigError(f"{type(self).__name__}.std: {std} is not from 0 to 10")
        self.std = std

    @abstractmethod
    def __call__(self, x: Tensor, targets: Tensor, normal: Normal) -> tuple[Tensor, Tensor]: ...


class Jitter(Augmentation):
    """Add noise to each value that is seen; what is to be forecast stays."""

    def __call__(self, x: Tensor, targets: Tensor, normal: Normal) -> tuple[Tensor, Tensor]:
        return x + self.std * normal(*x.shape[1:]), targets


class Scaling(Augmentation):
    """Multiply each column of a window, and its targets alike, by a number around 1."""

    def __call__(self, x: Tensor, targets: Tensor, normal: Normal) -> tuple[Tensor, Tensor]:
        factor = 1 + self.std * normal(1, x.shape[2])
        return x * factor, targets * factor[..., : targets.shape[2]]


def normals(index: Tensor, seed: int, epoch: int, operation: int, *shape: int) -> Tensor:
    """Normal numbers [N, *shape] that belong to the windows `index` [N], wherever and whenever they are drawn."""
    u = uniform(seed, epoch, index, operation, math.prod(shape))
    return (torch.erfinv((2 * u - 1).clamp(min=-1 + 2.0**-23)) * 2**0.5).unflatten(1, shape)
