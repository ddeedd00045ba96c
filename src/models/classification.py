from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import AUROC, ConfusionMatrix

from src.data.module import Batch
from src.models import pictures
from src.models.base import MaskedMean, Model
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Classification(Model):
    """Labels of samples. With one label each (targets [N]): cross-entropy over the classes. With several (targets
    [N, num_classes] of 0 and 1): binary cross-entropy, its mean over the labels. The network gives logits
    [N, num_classes].

    Measured are loss, accuracy (of several labels, the share that is right), and the means over the classes of F1 and
    of the area under the ROC curve. Classes that cannot be measured, because a split has none of their samples, are
    left out of these means, with a warning.

    Args:
        label_smoothing: share of the target's probability spread over all classes, in training.
        views: what an image is classified by, but in training: by itself (`one`), by the mean of its logits and those
            of its mirror image (`mirrored`), or of both also where they are moved by a pixel, up and left or down and
            right (`shifted`; Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024).
        class_weights: factors of the classes' losses in training (of several labels, of the label's presence), or
            `balanced`: each class weighs as much as the others (of several labels, presence as much as absence).
    """

    uses = ("predict",)

    def __init__(
        self,
        label_smoothing: float = 0.0,
        views: Literal["one", "mirrored", "shifted"] = "one",
        class_weights: list[float] | Literal["balanced"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing <= 1:
            raise ConfigError(f"model.label_smoothing: {label_smoothing} is not from 0 to 1")
        self.label_smoothing, self.views, self.class_weights = label_smoothing, views, class_weights
        self.weights: Tensor | None = None
        self.mean_loss, self.mean_acc = MaskedMean(), MaskedMean()
        self.auroc: Metric | None = None
        self.told: set[str] = set()

    def configure_model(self) -> None:
        super().configure_model()
        if self.auroc is None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            size, targets = self.facts.get("num_classes"), next(iter(data.splits.values())).targets
            if size is None or (targets.ndim == 1 and targets.is_floating_point()):
                lack = "labels are floating-point -> make them int64" if size else "facts lack num_classes -> set it"
                raise DataError(f"{type(data).__name__}.setup: {lack}")
            one = targets.ndim == 1
            how: Any = {"task": "multiclass" if one else "multilabel", "num_classes": size, "num_labels": size}
            how |= {"ignore_index": -1, "validate_args": False}
            self.auroc, self.confusion = AUROC(average="none", **how), ConfusionMatrix(**how)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.class_weights is not None:
            targets = self.trainer.datamodule.splits["train"].targets  # type: ignore[attr-defined]
            self.weights = weights(self.class_weights, targets, self.facts["num_classes"]).to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["x"]).float(), batch.get("soft_targets", batch["targets"])
        if batch["targets"].ndim == 1:
            # The mean over samples, not over their weights, so that it does not depend on how a batch is divided.
            how = "mean" if self.weights is None else "none"
            loss = F.cross_entropy(logits, targets, self.weights, reduction=how, label_smoothing=self.label_smoothing)
            targets = targets if targets.ndim == 1 else targets.argmax(1)
        else:
            smooth = targets.float().lerp(torch.full_like(logits, 0.5), self.label_smoothing)
            loss = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=self.weights)
        loss = loss.mean()
        self.watch(loss=loss, acc=hits(logits, targets).mean())
        return loss

    def classify(self, x: Tensor) -> Tensor:
        """x [N, ...] -> logits [N, num_classes]."""
        seen = [x]
        if self.views == "shifted":
            framed = F.pad(x, [1] * 4, mode="replicate")
            seen += [framed[..., :-2, :-2], framed[..., 2:, 2:]]
        if self.views != "one":
            seen += [view.flip(-1) for view in seen]
        return torch.stack([self(view).float() for view in seen]).mean(0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, targets, real = self.classify(batch["x"]), batch["targets"], batch["index"] >= 0
        assert self.auroc is not None
        if targets.ndim == 1:
            losses, p = F.cross_entropy(logits, targets, reduction="none"), logits.softmax(1)
            known, predicted = torch.where(real, targets, -1), logits.argmax(1)
        else:
            losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)
            known, predicted, p = torch.where(real[:, None], targets.long(), -1), (logits > 0).long(), logits.sigmoid()
        self.confusion.update(predicted, known)
        self.auroc.update(p, known)
        self.mean_loss.update(losses, real)
        self.mean_acc.update(hits(logits, targets), real)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N] or [N, num_classes], and the classes' probabilities [N, num_classes]."""
        logits, targets = self.classify(batch["x"]), batch["targets"]
        probabilities = logits.softmax(1) if targets.ndim == 1 else logits.sigmoid()
        return {"index": batch["index"], "targets": targets, "probabilities": probabilities}

    def log_scores(self, split: str) -> None:
        assert self.auroc is not None
        confusion = self.confusion.compute()  # over all devices, as all that follows
        there, f1 = presence_and_f1(confusion)
        areas = torch.where(there, self.auroc.compute(), torch.nan)  # torchmetrics scores absent classes, too
        scores = {"loss": self.mean_loss.compute(), "acc": self.mean_acc.compute()}
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})
        self.log_dict({f"{split}/f1": f1.nanmean(), f"{split}/auroc": areas.nanmean()})
        if not there.all() and not self.trainer.sanity_checking:
            self.tell_unmeasured(split, (~there).nonzero().flatten().tolist())
        self.counts = confusion.cpu().numpy()
        for metric in (self.mean_loss, self.mean_acc, self.auroc, self.confusion):
            metric.reset()

    def tell_unmeasured(self, split: str, classes: list[int]) -> None:
        more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
        which = ", ".join(self.class_names()[k] for k in classes[:5]) + more
        text = f"{split} has only, or no, samples of class {which}: {split}/auroc is without it"
        if text not in self.told:
            rank_zero_print(text)
            self.told.add(text)

    def class_names(self) -> list[str]:
        statistics = self.trainer.datamodule.statistics  # type: ignore[attr-defined]
        return statistics.get("class_names") or [str(k) for k in range(self.facts["num_classes"])]

    def pictures(self) -> dict[str, "Figure"]:
        if self.counts.ndim == 3:  # of several labels
            return {}
        return {"confusion": pictures.confusion(self.counts, self.class_names())}


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [N, C], targets [N] or [N, C] -> whether the class is right, or the share of labels that are: [N]."""
    if targets.ndim == 1:
        return (logits.argmax(1) == targets).float()
    return ((logits > 0) == (targets > 0.5)).float().mean(1)


def presence_and_f1(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Of each class: whether there are samples with it and without it; F1, NaN where it is neither there nor predicted.

    Args:
        confusion: counts [C, C], rows are targets; or [C, 2, 2], a table for each label.
    """
    if confusion.ndim == 2:
        right, targets, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        samples = confusion.sum()
    else:
        right, targets, predicted = confusion[:, 1, 1], confusion[:, 1].sum(1), confusion[:, :, 1].sum(1)
        samples = confusion.sum((1, 2))
    return (targets > 0) & (targets < samples), 2 * right / (targets + predicted)


def weights(given: list[float] | Literal["balanced"], targets: Tensor, num_classes: int) -> Tensor:
    """[num_classes], from train's targets [N] or [N, num_classes] if `balanced`.

    Raises:
        ConfigError: a list of another length, or a weight below zero.
    """
    if isinstance(given, list):
        if len(given) != num_classes or min(given) < 0:
            raise ConfigError(f"model.class_weights: {given} -> give {num_classes} numbers, none below 0")
        return torch.tensor(given)
    if targets.ndim == 2:
        present = targets.sum(0).clamp(min=1)
        return (len(targets) - present) / present
    return len(targets) / num_classes / torch.bincount(targets, minlength=num_classes).clamp(min=1)
