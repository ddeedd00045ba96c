from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.data.module import Batch
from src.models.base import MaskedSums, Model
from src.models.criterion import Criterion, Loss, own_unit, units
from src.run.errors import DataError
from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = ("loss", "absolute", "squared", "targets", "targets_squared", "covered")
KEPT = 10_000  # samples of a split whose predictions are drawn


class Regression(Model):
    """A number for each sample: targets [N], and the network gives [N, num_classes], one number or one a quantile.

    Training is in units of the targets' standard deviation in train. `mae`, `rmse` and predictions are in the target's
    own units; `r2` is the share of the variance that is explained. With quantiles, `loss` is the pinball loss, the
    middle one is the prediction, and `coverage` is the share of targets between the outermost ones.

    Args:
        loss: `mse` predicts the mean, `mae` the median, `huber` lies between them and minds outliers less than `mse`,
            `quantile` predicts all of `quantiles` (Koenker and Bassett, Regression Quantiles, 1978).
        quantiles: of the loss `quantile`, in order.
        huber_delta: where `huber` turns from squares to absolute values, in standard deviations.
    """

    uses = ("predict",)
    provides = ("num_classes",)  # of the network's last layer, as torchvision and timm call it

    def __init__(
        self,
        loss: Loss = "mse",
        quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
        huber_delta: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.criterion = Criterion(loss, quantiles, huber_delta)
        self.sums = MaskedSums(len(MEASURED))
        self.kept: list[Tensor] = []  # [N, 1 + num_outputs], targets and outputs
        self.drawn: Tensor | None = None

    def own_facts(self) -> dict[str, Any]:
        return {"num_classes": self.criterion.num_outputs}

    def configure_model(self) -> None:
        super().configure_model()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        targets = next(iter(data.splits.values())).targets
        if not targets.is_floating_point() or targets.ndim != 1:
            what = f"targets are {targets.dtype} {list(targets.shape)}, not one number each"
            hint = data.hint(what) or "give one float for each sample, or take a model of another kind"
            raise DataError(f"{type(data).__name__}: {what} -> {hint}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch["x"]).float(), batch["targets"]).mean()
        self.watch(loss=loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        outputs, targets, real = self.predicted(batch), batch["targets"], batch["index"] >= 0
        errors = self.criterion.point(outputs) - targets
        covered = (targets >= outputs[:, 0]) & (targets <= outputs[:, -1])
        found = (self.criterion(outputs, targets), errors.abs(), errors.square(), targets, targets.square(), covered)
        self.sums.update(torch.stack(found, 1), real[:, None])
        if sum(map(len, self.kept)) < KEPT:
            self.kept.append(torch.where(real[:, None], torch.cat([targets[:, None], outputs], 1), torch.nan))

    def predicted(self, batch: Batch) -> Tensor:
        """[N, num_outputs], quantiles in order."""
        return self(batch["x"]).float().sort(1).values

    def log_scores(self, split: str) -> None:
        total, count = self.sums.compute()
        mean = dict(zip(MEASURED, total / count, strict=True))
        [(_, _, std)] = units(self.trainer.datamodule)  # type: ignore[attr-defined]
        variance = mean["targets_squared"] - mean["targets"].square()
        scores = {"loss": mean["loss"], "mae": mean["absolute"] * std, "rmse": mean["squared"].sqrt() * std}
        scores["r2"] = torch.where(variance > 0, 1 - mean["squared"] / variance, torch.nan)
        if self.criterion.quantiles:
            scores["coverage"] = mean["covered"]
        self.log_dict({f"{split}/{name}": value.float() for name, value in scores.items()})
        self.sums.reset()
        self.drawn, self.kept = torch.cat(self.kept).cpu() if self.kept else None, []

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N], and the network's numbers [N, num_outputs], in training's units."""
        return {"index": batch["index"], "targets": batch["targets"], "outputs": self.predicted(batch)}

    def named_outputs(self, batch: Batch) -> dict[str, Tensor]:
        return self.criterion.answers(self.predicted(batch)[:, None], units(self.data))

    def columns(self, outputs: dict[str, Tensor], data: Any) -> dict[str, Any]:
        [unit] = units(data)
        targets = own_unit(outputs["targets"], unit).numpy()
        return {"target": targets} | self.criterion.columns(outputs["outputs"], unit)

    def pictures(self) -> dict[str, "Figure"]:
        if self.drawn is None:
            return {}
        [unit] = units(self.trainer.datamodule)  # type: ignore[attr-defined]
        targets, outputs = own_unit(self.drawn, unit).split([1, self.criterion.num_outputs], 1)
        return {"residuals": draw_residuals(targets[:, 0].numpy(), self.criterion.point(outputs).numpy())}


def draw_residuals(targets: np.ndarray, predictions: np.ndarray) -> "Figure":
    """Predictions against targets [N], and the errors."""
    known = np.isfinite(targets)
    targets, predictions = targets[known], predictions[known]
    fig = figure(10, 4.5)
    left, right = fig.subplots(1, 2)
    left.plot(targets, predictions, ".", markersize=3, alpha=0.4)
    ends = [targets.min(), targets.max()]
    left.plot(ends, ends, "k", linewidth=0.8)
    left.set(title="predictions against targets, test", xlabel="target", ylabel="prediction")
    right.hist(predictions - targets, bins=50)
    right.set(title="errors", xlabel="prediction - target", ylabel="samples")
    return fig
