from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.data.module import Batch
from src.models.base import MaskedMean, Model
from src.models.criterion import Criterion, Loss
from src.run.errors import DataError
from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        names = ("loss", "absolute", "squared", "targets", "targets_squared", "covered")
        self.means = torch.nn.ModuleDict({name: MaskedMean() for name in names})
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
            hint = data.hint(what) or "make them floats, or take src.models.classification.Classification"
            raise DataError(f"{type(data).__name__}: {what} -> {hint}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch["x"]).float(), batch["targets"]).mean()
        self.watch(loss=loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        outputs, targets, real = self(batch["x"]).float(), batch["targets"], batch["index"] >= 0
        errors = self.criterion.point(outputs) - targets
        covered = (targets >= outputs.amin(-1)) & (targets <= outputs.amax(-1))
        found = {"loss": self.criterion(outputs, targets), "absolute": errors.abs(), "squared": errors.square()}
        found |= {"targets": targets, "targets_squared": targets.square(), "covered": covered}
        for name, values in found.items():
            self.means[name].update(values, real)  # type: ignore[operator]
        if sum(map(len, self.kept)) < KEPT:
            self.kept.append(torch.where(real[:, None], torch.cat([targets[:, None], outputs], 1), torch.nan))

    def log_scores(self, split: str) -> None:
        mean = {name: metric.compute().double() for name, metric in self.means.items()}  # type: ignore[operator]
        std = target_units(self.trainer.datamodule)[1]  # type: ignore[attr-defined]
        variance = mean["targets_squared"] - mean["targets"].square()
        scores = {"loss": mean["loss"], "mae": mean["absolute"] * std, "rmse": mean["squared"].sqrt() * std}
        scores["r2"] = 1 - mean["squared"] / variance
        if self.criterion.num_outputs > 1:
            scores["coverage"] = mean["covered"]
        self.log_dict({f"{split}/{name}": value.float() for name, value in scores.items()})
        for metric in self.means.values():
            metric.reset()  # type: ignore[operator]
        self.drawn, self.kept = torch.cat(self.kept).cpu() if self.kept else None, []

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N], and the network's numbers [N, num_outputs], in training's units."""
        return {"index": batch["index"], "targets": batch["targets"], "outputs": self(batch["x"]).float()}

    def columns(self, outputs: dict[str, Tensor], data: Any) -> dict[str, Any]:
        mean, std = target_units(data)
        found = (outputs["outputs"].double().sort(-1).values * std + mean).float()
        targets = (outputs["targets"].double() * std + mean).float()
        point = self.criterion.point(found)
        return {"target": targets.numpy(), "prediction": point.numpy()} | self.criterion.columns(found)

    def pictures(self) -> dict[str, "Figure"]:
        if self.drawn is None:
            return {}
        mean, std = target_units(self.trainer.datamodule)  # type: ignore[attr-defined]
        targets, outputs = (part * std + mean for part in self.drawn.double().split([1, self.criterion.num_outputs], 1))
        return {"residuals": draw_residuals(targets[:, 0].numpy(), self.criterion.point(outputs).numpy())}


def target_units(data: Any) -> tuple[float, float]:
    """Mean and standard deviation of the target in train, by which it was scaled: 0 and 1 where it was not."""
    known = data.statistics.get("targets", {"mean": [0.0], "std": [1.0]})
    return known["mean"][0], known["std"][0]


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
