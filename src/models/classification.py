from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics.classification import MulticlassConfusionMatrix

from src import pictures
from src.data.module import Batch
from src.models.base import MaskedMean, Model, NetworkFactory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Classification(Model):
    """One label for each sample: cross-entropy and accuracy.

    Args:
        network: the architecture; gives logits [N, num_classes].
        optimizer: gets the parameters.
        schedule: gets the optimizer.
        label_smoothing: share of the target's probability spread over all classes, in training.
    """

    def __init__(
        self,
        network: NetworkFactory,
        optimizer: Callable[[Iterable], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        self.label_smoothing = label_smoothing
        self.mean_loss, self.mean_acc = MaskedMean(), MaskedMean()
        self.confusion: MulticlassConfusionMatrix | None = None

    def on_test_start(self) -> None:
        size = self.trainer.datamodule.facts["num_classes"]  # type: ignore[attr-defined]
        self.confusion = MulticlassConfusionMatrix(size, ignore_index=-1, validate_args=False).to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["x"]), batch["targets"]  # [N, num_classes], [N]
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self.watch(loss=loss, acc=(logits.argmax(1) == targets).float().mean())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["x"]), batch["targets"]
        real = batch["index"] >= 0
        self.mean_loss.update(F.cross_entropy(logits, targets, reduction="none"), real)
        self.mean_acc.update((logits.argmax(1) == targets).float(), real)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.validation_step(batch, batch_idx)
        assert self.confusion is not None
        self.confusion.update(logits, torch.where(batch["index"] >= 0, batch["targets"], -1))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N], and the classes' probabilities [N, num_classes]."""
        probabilities = self(batch["x"]).float().softmax(1)
        return {"index": batch["index"], "targets": batch["targets"], "probabilities": probabilities}

    def on_validation_epoch_end(self) -> None:
        self.log_means("val")

    def on_test_epoch_end(self) -> None:
        self.log_means("test")
        assert self.confusion is not None
        self.counts = self.confusion.compute().cpu().numpy()  # [num_classes, num_classes], over all devices

    def pictures(self) -> dict[str, "Figure"]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        names = data.statistics.get("class_names") or [str(k) for k in range(len(self.counts))]
        return {"confusion": pictures.confusion(self.counts, names)}

    def log_means(self, split: str) -> None:
        for name, mean in (("loss", self.mean_loss), ("acc", self.mean_acc)):
            self.log(f"{split}/{name}", mean.compute())
            mean.reset()
