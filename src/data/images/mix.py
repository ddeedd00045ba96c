"""Two images in one, with the labels of both: a batch and itself, moved on by one place.

A sample's share is a function of (seed, epoch, sample), like every augmentation. Its partner is the next sample on the
same device: on another number of devices, or with another `micro_batch_size`, it is another one.
"""

from abc import ABC, abstractmethod
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.images.augment import rectangle, within
from src.data.module import Batch
from src.data.order import MIX, uniform
from src.run.errors import ConfigError

STEPS = 4096  # values that a share can have


class Mix(ABC):
    """Mixes a batch with itself.

    Args:
        alpha: shares come from a Beta(alpha, alpha) distribution: 1 gives all shares equally often, smaller ones more
            often nearly the whole of one image.
        p: part of the samples that are mixed.
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        if alpha <= 0:
            raise ConfigError(f"data.mix.alpha: {alpha} is not above 0")
        within("data.mix.p", p, 0, 1)
        self.alpha, self.p = alpha, p

    @abstractmethod
    def images(self, x: Tensor, share: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, C, H, W] in which of each sample `share` [N] is left, with two more random numbers u [N, 2]; and the
        shares as they came out."""

    def __call__(self, batch: Batch, num_classes: int, seed: int, epoch: int) -> Batch:
        """The batch with mixed `x` and with `soft_targets` [N, num_classes] besides its `targets`."""
        u = uniform(seed, epoch, batch.get("draw", batch["index"]), MIX, 4)
        share = quantiles(self.alpha, u.device)[(u[:, 1] * STEPS).long()]
        x, share = self.images(batch["x"], torch.where(u[:, 0] < self.p, share, 1.0), u[:, 2:])
        targets = batch["targets"]
        targets = targets.float() if targets.ndim == 2 else F.one_hot(targets, num_classes).float()
        return {**batch, "x": x, "soft_targets": torch.lerp(targets.roll(1, 0), targets, share[:, None])}


class MixUp(Mix):
    """The weighted mean of two images (Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018)."""

    def images(self, x: Tensor, share: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return torch.lerp(x.roll(1, 0), x, share[:, None, None, None]), share


class CutMix(Mix):
    """A rectangle of the image is that of another one (Yun et al., CutMix, 2019)."""

    def images(self, x: Tensor, share: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        side = (1 - share).sqrt()
        inside = rectangle(x, side, side, u[:, 0], u[:, 1]).float()
        return torch.lerp(x, x.roll(1, 0), inside), 1 - inside.mean((1, 2, 3))


@cache  # one entry a device: a copy from the host at each batch would stop the GPU
def quantiles(alpha: float, device: torch.device) -> Tensor:
    """[STEPS] values of Beta(alpha, alpha), each as likely as the others."""
    from scipy.stats import beta

    values = beta.ppf((np.arange(STEPS) + 0.5) / STEPS, alpha, alpha)
    return torch.tensor(values, dtype=torch.float32, device=device)
