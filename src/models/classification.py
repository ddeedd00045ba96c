from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

from src.data.module import Batch
from src.models import pictures
from src.models.base import Model
from src.models.metrics import MaskedMean, f1_by_class
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Classification(Model):
    """One of several classes for each sample, by cross-entropy: targets [N], and the network gives logits
    [N, num_classes].

    Measured are loss, accuracy, and the means over the classes of F1 and of the area under the ROC curve. Classes that
    cannot be measured, because a split has none of their samples, are left out of these means, with a warning.

    Args:
        label_smoothing: share of the target's probability spread over all classes, in training.
        class_weights: factors of the classes' losses in training, or `balanced`: each class weighs as much as the
            others.
    """

    uses = ("predict",)

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing <= 1:
            raise ConfigError(f"model.label_smoothing: {label_smoothing} is not from 0 to 1")
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self.weights: Tensor | None = None
        self.mean_loss = MaskedMean()
        self.warnings: set[str] = set()

    def configure_model(self) -> None:
        super().configure_model()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        targets = next(iter(data.splits.values())).targets
        if "num_classes" not in self.facts:
            raise DataError(f"{type(data).__name__}.setup: facts lack num_classes -> set it")
        if targets.is_floating_point() or targets.ndim != 1:
            what = "floating-point" if targets.ndim == 1 else f"of shape {list(targets.shape)}"
            raise DataError(f"{type(data).__name__}.setup: labels are {what} -> make them int64, one for a sample")
        how: Any = {"num_classes": self.facts["num_classes"], "ignore_index": -1, "validate_args": False}
        self.auroc, self.confusion = MulticlassAUROC(average="none", **how), MulticlassConfusionMatrix(**how)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.class_weights is not None:
            targets = self.trainer.datamodule.splits["train"].targets  # type: ignore[attr-defined]
            self.weights = loss_weights(self.class_weights, targets, self.facts["num_classes"]).to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["x"]).float(), batch.get("soft_targets", batch["targets"])
        # The mean over samples, not over their weights, so that it does not depend on how a batch is divided.
        how = "mean" if self.weights is None else "none"
        loss = F.cross_entropy(
            logits, targets, self.weights, reduction=how, label_smoothing=self.label_smoothing
        ).mean()
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        self.watch(loss=loss, acc=(logits.argmax(1) == classes).float().mean())
        return loss

    def classify(self, x: Tensor) -> Tensor:
        """x [N, ...] -> logits [N, num_classes], the mean over the data module's views of x."""
        views = self.trainer.datamodule.views(x)  # type: ignore[attr-defined]
        return torch.stack([self(view).float() for view in views]).mean(0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, targets, real = self.classify(batch["x"]), batch["targets"], batch["index"] >= 0
        known = torch.where(real, targets, -1)
        self.confusion.update(logits.argmax(1), known)
        self.auroc.update(logits.softmax(1), known)
        self.mean_loss.update(F.cross_entropy(logits, targets, reduction="none"), real)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N], and the classes' probabilities [N, num_classes]."""
        probabilities = self.classify(batch["x"]).softmax(1)
        return {"index": batch["index"], "targets": batch["targets"], "probabilities": probabilities}

    def log_scores(self, split: str) -> None:
        confusion = self.confusion.compute()  # over all devices, as all that follows
        samples = confusion.sum(1)
        measurable = (samples > 0) & (samples < samples.sum())
        areas = torch.where(measurable, self.auroc.compute(), torch.nan)  # torchmetrics scores absent classes, too
        scores = {"loss": self.mean_loss.compute(), "acc": confusion.diagonal().sum() / samples.sum()}
        scores |= {"f1": f1_by_class(confusion).nanmean(), "auroc": areas.nanmean()}
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})
        if not measurable.all() and not self.trainer.sanity_checking:
            self.warn_once(split, (~measurable).nonzero().flatten().tolist())
        self.counts = confusion.cpu().numpy()
        for metric in (self.mean_loss, self.auroc, self.confusion):
            metric.reset()

    def warn_once(self, split: str, classes: list[int]) -> None:
        more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
        which = ", ".join(self.class_names()[k] for k in classes[:5]) + more
        text = f"{split} has only, or no, samples of class {which}: {split}/auroc is without it"
        if text not in self.warnings:
            rank_zero_print(text)
            self.warnings.add(text)

    def class_names(self) -> list[str]:
        statistics = self.trainer.datamodule.statistics  # type: ignore[attr-defined]
        return statistics.get("class_names") or [str(k) for k in range(self.facts["num_classes"])]

    def pictures(self) -> dict[str, "Figure"]:
        return {"confusion": pictures.confusion(self.counts, self.class_names())}


def loss_weights(given: list[float] | Literal["balanced"], targets: Tensor, num_classes: int) -> Tensor:
    """[num_classes], from train's targets [N] if `balanced`.

    Raises:
        ConfigError: a list of another length, or a weight below zero.
    """
    if given == "balanced":
        return len(targets) / num_classes / torch.bincount(targets, minlength=num_classes).clamp(min=1)
    if len(given) != num_classes or min(given) < 0:
        raise ConfigError(f"model.class_weights: {given} -> give {num_classes} numbers, none below 0")
    return torch.tensor(given)
