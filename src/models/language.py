import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.module import Batch
from src.models.answers import ranked
from src.models.base import MaskedMean, Model
from src.models.levers import recomputed
from src.run.errors import ConfigError

AT_ONCE = 32  # windows of a text whose logits are made at once


class LanguageModeling(Model):
    """The next token at each place: cross-entropy, perplexity and bits per byte (loss / ln 2 / bytes per token).
    The network gives logits [N, T, vocab_size] for x [N, T].

    Args:
        loss_chunks: into so many parts a batch's tokens are divided, of which one at a time has logits: less memory
            where the vocabulary is large. The network's last layer must be its `head`, of what its method `features`
            gives.
    """

    uses = ("generate",)

    def __init__(self, loss_chunks: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if loss_chunks < 1:
            raise ConfigError(f"model.loss_chunks: {loss_chunks} is less than 1")
        self.loss_chunks = loss_chunks
        self.mean_loss = MaskedMean()
        self.known: Tensor | float = 0.0  # shares of the places with a target, of this step's micro-batches

    def pull_levers(self, network: nn.Module) -> None:
        if self.loss_chunks > 1:
            check_head(network)
        super().pull_levers(network)

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
        super().on_after_backward()
        step = self.trainer.accumulate_grad_batches
        if (self.trainer.fit_loop.epoch_loop.batch_idx + 1) % step:
            return
        known, self.known = self.known / step, 0.0
        if self.trainer.world_size > 1:
            known = self.trainer.strategy.reduce(known, reduce_op="mean")
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        known = torch.as_tensor(known, device=grads[0].device)  # FSDP's offloaded gradients are on the host
        torch._foreach_div_(grads, known)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.mean_loss.update(self.losses(batch, "none"), batch["targets"].flatten() >= 0)

    def losses(self, batch: Batch, reduction: str) -> Tensor:
        """Of all tokens, [N * T], or their sum; targets are -100 where there is no token."""
        targets = batch["targets"].flatten()
        if self.loss_chunks == 1:
            return F.cross_entropy(self(batch["x"]).flatten(0, 1).float(), targets, reduction=reduction)
        losses = chunked_losses(self.network, batch["x"], targets, self.loss_chunks)
        return losses if reduction == "none" else losses.sum()

    def named_outputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"probabilities": self(batch["x"]).float().softmax(-1)}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Of one text in windows: its tokens but the first, their mean loss, and the probabilities [1, vocab_size] of
        what follows its end, `prompt` [1, T]."""
        pairs = zip(batch["x"].split(AT_ONCE), batch["targets"].split(AT_ONCE), strict=True)
        loss, tokens = sum(self.losses({"x": x, "targets": t}, "sum") for x, t in pairs), (batch["targets"] >= 0).sum()
        chances = self(batch["prompt"])[:, -1].float().softmax(1)
        return {"index": tokens[None], "tokens": tokens[None], "loss": loss / tokens[None], "probabilities": chances}

    def columns(self, outputs: dict[str, Tensor], data: Any, top_k: int = 5) -> dict[str, Any]:
        tokens, loss = outputs["tokens"].numpy(), outputs["loss"]
        found = {"tokens": tokens, "loss": loss.numpy(), "perplexity": loss.exp().numpy()}
        return found | ranked(outputs["probabilities"], data.token, top_k)

    def log_scores(self, split: str) -> None:
        loss = self.mean_loss.compute()
        bytes_per_token = self.trainer.datamodule.bytes_per_token(split)  # type: ignore[attr-defined]
        self.log_dict({f"{split}/loss": loss, f"{split}/perplexity": loss.exp()})
        self.log(f"{split}/bpb", loss / (math.log(2) * bytes_per_token))
        self.mean_loss.reset()


def check_head(network: nn.Module) -> None:
    """Raise ConfigError where a network's last layer cannot be had apart."""
    if not callable(getattr(network, "features", None)) or not isinstance(getattr(network, "head", None), nn.Module):
        what = f"{type(network).__name__} does not say what its last layer is"
        how = "give it a layer `head` and a method `features`, with forward(x) = head(features(x)), or leave it 1"
        raise ConfigError(f"model.loss_chunks: {what} -> {how}")


def chunked_losses(network: Any, x: Tensor, targets: Tensor, chunks: int) -> Tensor:
    """Cross-entropy of each token [N * T] for x [N, T] and targets [N * T], without all logits in memory at once.

    Of each chunk of tokens the logits are made, forgotten, and made again in the backward pass.
    """
    features = network.features(x).flatten(0, 1)  # [N * T, dim]
    pairs = zip(features.chunk(chunks), targets.chunk(chunks), strict=True)
    return torch.cat([recomputed(head_losses, None, network.head, part, wanted) for part, wanted in pairs])


def head_losses(head: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(features).float(), targets, reduction="none")
