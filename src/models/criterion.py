from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from src.run.errors import ConfigError

Loss = Literal["mse", "mae", "huber", "quantile"]


class Criterion:
    """The loss of each sample, and what its numbers mean.

    Raises:
        ConfigError: the quantiles are not in order between 0 and 1, or delta is not above 0.
    """

    def __init__(self, loss: Loss, quantiles: tuple[float, ...], huber_delta: float) -> None:
        if list(quantiles) != sorted({*quantiles}) or not all(0 < q < 1 for q in quantiles) or not quantiles:
            raise ConfigError(f"model.quantiles: {list(quantiles)} -> give shares between 0 and 1, in order")
        if huber_delta <= 0:
            raise ConfigError(f"model.huber_delta: {huber_delta} is not above 0")
        self.loss, self.delta = loss, huber_delta
        self.quantiles = tuple(quantiles) if loss == "quantile" else ()
        self.num_outputs = len(self.quantiles) or 1

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [..., num_outputs], targets [...] -> losses [...]"""
        if self.loss == "quantile":
            q, errors = outputs.new_tensor(self.quantiles), targets[..., None] - outputs
            return torch.maximum(q * errors, (q - 1) * errors).mean(-1)
        point = outputs[..., 0]
        if self.loss == "mse":
            return F.mse_loss(point, targets, reduction="none")
        if self.loss == "mae":
            return F.l1_loss(point, targets, reduction="none")
        return F.huber_loss(point, targets, reduction="none", delta=self.delta)

    def point(self, outputs: Tensor) -> Tensor:
        """[..., num_outputs] -> [...]: the one number, or the quantile nearest to the middle."""
        distances = [abs(q - 0.5) for q in self.quantiles] or [0.0]
        return outputs[..., distances.index(min(distances))]

    def columns(self, outputs: Tensor, name: str = "prediction") -> dict[str, Any]:
        """A column for each quantile of outputs [N, num_outputs]."""
        return {f"{name}_{q:g}": outputs[:, i].numpy() for i, q in enumerate(self.quantiles)}
