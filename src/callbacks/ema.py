from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from src.run.errors import ConfigError


class EMA(Callback):
    """Exponential moving average of the weights (Polyak and Juditsky, 1992). It is the average that is validated, is
    tested, and stands in a checkpoint as the model's weights; those that are trained stand beside it, under `ema`.

    Lightning's EMAWeightAveraging (2.6.6) would break two promises: a run's last checkpoint has the average in place of
    what is trained, so nothing could train on from it; and counters in buffers are averaged.

    The statistics of batch norms are averaged like weights. In the first steps `decay` is at most
    (1 + step) / (10 + step), so that the random weights of the start do not stay in the average.

    Args:
        decay: share of the old average kept at each optimizer step, such as 0.999; without it there is no average.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ConfigError(f"ema.decay: {decay} is not from 0 to below 1")
        self.decay = decay
        self.trained_weights: dict[str, Tensor] | None = None  # of a checkpoint
        self.average: list[Tensor] = []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.trained_weights = checkpoint.get("ema")  # without one, the average begins with these weights

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.decay is not None:
            self.average = [t.detach().clone() for t in tensors(pl_module)]
        if self.trained_weights is not None:  # the model has the average of the checkpoint now
            pl_module.load_state_dict(self.trained_weights)
            self.trained_weights = None
        if self.decay is None:  # no step need ask it
            trainer.callbacks = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        within_step = (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches
        if self.decay is not None and not within_step:
            step = trainer.global_step
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self.average, tensors(pl_module), step)

    @torch.no_grad()
    def swap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for average, t in zip(self.average, tensors(pl_module) if self.average else (), strict=True):
            kept = t.clone()
            t.copy_(average)
            average.copy_(kept)

    on_validation_start = on_validation_end = swap

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.decay is None:
            return
        state = checkpoint["state_dict"]
        other = dict(zip(map(id, tensors(pl_module)), self.average, strict=True))
        named = [*pl_module.named_parameters(remove_duplicate=False), *pl_module.named_buffers(remove_duplicate=False)]
        others = state | {name: other[id(t)] for name, t in named if name in state and id(t) in other}
        average, trained = (state, others) if trainer.validating else (others, state)
        checkpoint["state_dict"], checkpoint["ema"] = average, trained


def tensors(module: LightningModule) -> list[Tensor]:
    """What is averaged, each once, also where layers share it."""
    return [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
