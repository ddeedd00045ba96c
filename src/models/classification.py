from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelConfusionMatrix

from src import pictures
from src.data.module import Batch
from src.errors import ConfigError
from src.models.base import MaskedMean, Model, NetworkFactory
from src.models.scores import AUROC, f1

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Classification(Model):
    """Labels of samples. With one label each (targets [N]): cross-entropy over the classes. With several (targets
    [N, num_classes] of 0 and 1): binary cross-entropy, its mean over the labels.

    Measured are loss, accuracy (of several labels, the share that is right), and the means over the classes of F1 and
    of the area under the ROC curve. Classes that cannot be measured, because a split has none of their samples, are
    left out of these means, with a warning.

    Args:
        network: the architecture; gives logits [N, num_classes].
        optimizer: gets the parameters.
        schedule: gets the optimizer.
        label_smoothing: share of the target's probability spread over all classes, in training.
        class_weights: factors of the classes' losses in training (of several labels, of the label's presence), or
            `balanced`: each class weighs as much as the others (of several labels, presence as much as absence).
    """

    def __init__(
        self,
        network: NetworkFactory,
        optimizer: Callable[[Iterable], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self.weights: Tensor | None = None
        self.mean_loss, self.mean_acc = MaskedMean(), MaskedMean()
        self.auroc: AUROC | None = None

    def configure_model(self) -> None:
        super().configure_model()
        if self.auroc is None:
            size, data = self.facts["num_classes"], self.trainer.datamodule  # type: ignore[attr-defined]
            one = next(iter(data.splits.values())).targets.ndim == 1
            kind = MulticlassConfusionMatrix if one else MultilabelConfusionMatrix
            self.auroc, self.confusion = AUROC(size), kind(size, ignore_index=-1, validate_args=False)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.class_weights is not None:
            targets = self.trainer.datamodule.splits["train"].targets  # type: ignore[attr-defined]
            self.weights = weights(self.class_weights, targets, self.facts["num_classes"]).to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["x"]), batch.get("soft_targets", batch["targets"])
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

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, targets, real = self(batch["x"]), batch["targets"], batch["index"] >= 0
        assert self.auroc is not None
        if targets.ndim == 1:
            losses = F.cross_entropy(logits, targets, reduction="none")
            log_p = logits.float().log_softmax(1)
            odds, positive = log_p - torch.log1p(-log_p.exp()), F.one_hot(targets, logits.shape[1]).bool()
            self.confusion.update(logits.argmax(1), torch.where(real, targets, -1))
        else:
            losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)
            odds, positive = logits, targets > 0
            self.confusion.update((logits > 0).long(), torch.where(real[:, None], targets.long(), -1))
        self.auroc.update(odds, positive, real)
        self.mean_loss.update(losses, real)
        self.mean_acc.update(hits(logits, targets), real)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N] or [N, num_classes], and the classes' probabilities [N, num_classes]."""
        logits, targets = self(batch["x"]).float(), batch["targets"]
        probabilities = logits.softmax(1) if targets.ndim == 1 else logits.sigmoid()
        return {"index": batch["index"], "targets": targets, "probabilities": probabilities}

    def on_validation_epoch_end(self) -> None:
        self.log_scores("val")

    def on_test_epoch_end(self) -> None:
        self.log_scores("test")

    def log_scores(self, split: str) -> None:
        assert self.auroc is not None
        confusion, areas = self.confusion.compute(), self.auroc.compute()  # over all devices
        scores = {"loss": self.mean_loss.compute(), "acc": self.mean_acc.compute()}
        scores |= {"f1": f1(confusion).nanmean(), "auroc": areas.nanmean()}
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})
        if areas.isnan().any() and not self.trainer.sanity_checking:
            classes = areas.isnan().nonzero().flatten().tolist()
            rank_zero_warn(f"{split} has only, or no, samples of classes {classes}: {split}/auroc is without them")
        self.counts = confusion.cpu().numpy()
        for metric in (self.mean_loss, self.mean_acc, self.auroc, self.confusion):
            metric.reset()

    def pictures(self) -> dict[str, "Figure"]:
        if self.counts.ndim == 3:  # of several labels
            return {}
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        names = data.statistics.get("class_names") or [str(k) for k in range(len(self.counts))]
        return {"confusion": pictures.confusion(self.counts, names)}


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [N, C], targets [N] or [N, C] -> whether the class is right, or the share of labels that are: [N]."""
    if targets.ndim == 1:
        return (logits.argmax(1) == targets).float()
    return ((logits > 0) == (targets > 0.5)).float().mean(1)


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
