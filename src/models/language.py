import math
from collections.abc import Callable, Iterable

from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from src.data.module import Batch
from src.models.base import MaskedMean, Model, NetworkFactory


class LanguageModeling(Model):
    """The next token at each place: cross-entropy, perplexity and bits per byte (loss / ln 2 / bytes per token).

    Args:
        network: the architecture; x [N, T] -> logits [N, T, vocab_size].
        optimizer: gets the parameters.
        schedule: gets the optimizer.
    """

    uses = ("generate",)

    def __init__(
        self,
        network: NetworkFactory,
        optimizer: Callable[[Iterable], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        self.mean_loss = MaskedMean()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["x"]).flatten(0, 1), batch["targets"].flatten())
        self.watch(loss=loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        targets = batch["targets"].flatten()  # -100 where there is no token
        losses = F.cross_entropy(self(batch["x"]).flatten(0, 1), targets, reduction="none")
        self.mean_loss.update(losses, targets >= 0)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_means("val")

    def on_test_epoch_end(self) -> None:
        self.log_means("test")

    def log_means(self, split: str) -> None:
        loss = self.mean_loss.compute()
        bytes_per_token = self.trainer.datamodule.bytes_per_token(split)  # type: ignore[attr-defined]
        self.log_dict({f"{split}/loss": loss, f"{split}/perplexity": loss.exp()})
        self.log(f"{split}/bpb", loss / (math.log(2) * bytes_per_token))
        self.mean_loss.reset()
