from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from src.data.module import Batch
from src.models.base import MaskedMean, Model, NetworkFactory


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
        self.means = nn.ModuleDict({"loss": MaskedMean(), "acc": MaskedMean()})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["x"]), batch["targets"]  # [N, num_classes], [N]
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self.watch(loss=loss, acc=(logits.argmax(1) == targets).float().mean())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, targets = self(batch["x"]), batch["targets"]
        real = batch["index"] >= 0
        self.means["loss"].update(F.cross_entropy(logits, targets, reduction="none"), real)
        self.means["acc"].update((logits.argmax(1) == targets).float(), real)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Class probabilities [N, num_classes] of the samples `index` [N]."""
        return {**batch, "x": torch.empty(0), "probabilities": self(batch["x"]).float().softmax(1)}

    def on_validation_epoch_end(self) -> None:
        self.log_means("val")

    def on_test_epoch_end(self) -> None:
        self.log_means("test")

    def log_means(self, split: str) -> None:
        for name, mean in self.means.items():
            self.log(f"{split}/{name}", mean.compute())
            mean.reset()
