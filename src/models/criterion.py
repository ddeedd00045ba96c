import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from src.run.errors import ConfigError

DIGITS = 5  # of a standard deviation
Loss = Literal["mse", "mae", "huber", "quantile"]


class Criterion:
    """The loss of each sample, and what its numbers mean.

    Raises:
        ConfigError: the quantiles are not in order between 0 and 1 or lack 0.5, or delta is not above 0.
    """

    def __init__(self, loss: Loss, quantiles: tuple[float, ...], huber_delta: float) -> None:
        if list(quantiles) != sorted({*quantiles}) or not all(0 < q < 1 for q in quantiles):
            raise ConfigError(f"model.quantiles: {list(quantiles)} -> give shares between 0 and 1, in order")
        if 0.5 not in quantiles:
            raise ConfigError(f"model.quantiles: {list(quantiles)} -> add 0.5, which is what is predicted")
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
        """[..., num_outputs] -> [...]: the one number, or the middle quantile."""
        return outputs[..., self.quantiles.index(0.5) if self.quantiles else 0]

    def columns(self, outputs: Tensor, unit: "Unit", end: str = "") -> dict[str, Any]:
        """The prediction, and each quantile, of outputs [N, num_outputs] in the target's own unit."""
        return {name: values.numpy() for name, values in self.named(own_unit(outputs, unit), end).items()}

    def named(self, numbers: Tensor, end: str) -> dict[str, Tensor]:
        quantiles = {f"prediction{end}_{q:g}": numbers[..., i] for i, q in enumerate(self.quantiles)}
        return {f"prediction{end}": self.point(numbers)} | quantiles

    def answers(self, outputs: Tensor, known: list["Unit"]) -> dict[str, Tensor]:
        """outputs [..., out_channels, num_outputs] by the names of `columns`, in the targets' own units."""
        named = zip(known, outputs.double().unbind(-2), strict=True)
        found = [self.named(one * std + mean, f"_{name}" if len(known) > 1 else "") for (name, mean, std), one in named]
        return dict(pair for one in found for pair in one.items())


Unit = tuple[str, float, float]  # name of a target, its mean and standard deviation in train, by which it was scaled


def units(data: Any) -> list[Unit]:
    """Of each target of a data module; as they are where it does not say that it has scaled them."""
    known = data.statistics.get("targets", {"names": ["target"], "mean": [0.0], "std": [1.0]})
    return list(zip(known["names"], known["mean"], known["std"], strict=True))


def own_unit(values: Tensor, unit: Unit) -> Tensor:
    """Scaled values, float32, in the target's own unit: float64, rounded to what float32 could tell apart."""
    _, mean, std = unit
    return (values.double() * std + mean).round(decimals=DIGITS - math.floor(math.log10(std)))
