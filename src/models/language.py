import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from src.data.module import Batch
from src.models.base import MaskedMean, Model


class LanguageModeling(Model):
    """The next token at each place: cross-entropy, perplexity and bits per byte (loss / ln 2 / bytes per token).
    The network gives logits [N, T, vocab_size] for x [N, T]."""

    uses = ("generate",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean_loss = MaskedMean()

    def logits_shape(self, x: Tensor) -> list[int]:
        return [*x.shape, self.facts["vocab_size"]]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.losses(batch, "mean")
        self.watch(loss=loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.mean_loss.update(self.losses(batch, "none"), batch["targets"].flatten() >= 0)

    def losses(self, batch: Batch, reduction: str) -> Tensor:
        """Of all tokens, [N * T], or their mean; targets are -100 where there is no token."""
        return F.cross_entropy(self(batch["x"]).flatten(0, 1).float(), batch["targets"].flatten(), reduction=reduction)

    def log_scores(self, split: str) -> None:
        loss = self.mean_loss.compute()
        bytes_per_token = self.trainer.datamodule.bytes_per_token(split)  # type: ignore[attr-defined]
        self.log_dict({f"{split}/loss": loss, f"{split}/perplexity": loss.exp()})
        self.log(f"{split}/bpb", loss / (math.log(2) * bytes_per_token))
        self.mean_loss.reset()
