import math
from typing import Any

import torch
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
        self.known: Tensor | float = 0.0  # shares of the places with a target, of this step's micro-batches

    def logits_shape(self, x: Tensor) -> list[int]:
        return [*x.shape, self.facts["vocab_size"]]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        known = (batch["targets"] >= 0).float().mean()
        loss = self.losses(batch, "sum") / batch["targets"].numel()
        self.watch(loss=loss, known=known)
        self.known = self.known + known
        return loss

    def on_after_backward(self) -> None:
        """The gradient so far is of the mean over all places of the batch; make it that over those with a target."""
        step = self.trainer.accumulate_grad_batches
        if (self.trainer.fit_loop.epoch_loop.batch_idx + 1) % step:
            return
        known, self.known = self.known / step, 0.0
        if self.trainer.world_size > 1:
            known = self.trainer.strategy.reduce(known, reduce_op="mean")
        torch._foreach_div_([p.grad for p in self.parameters() if p.grad is not None], known)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.mean_loss.update(self.losses(batch, "none"), batch["targets"].flatten() >= 0)

    def losses(self, batch: Batch, reduction: str) -> Tensor:
        """Of all tokens, [N * T], or their sum; targets are -100 where there is no token."""
        return F.cross_entropy(self(batch["x"]).flatten(0, 1).float(), batch["targets"].flatten(), reduction=reduction)

    def log_scores(self, split: str) -> None:
        loss = self.mean_loss.compute()
        bytes_per_token = self.trainer.datamodule.bytes_per_token(split)  # type: ignore[attr-defined]
        self.log_dict({f"{split}/loss": loss, f"{split}/perplexity": loss.exp()})
        self.log(f"{split}/bpb", loss / (math.log(2) * bytes_per_token))
        self.mean_loss.reset()
