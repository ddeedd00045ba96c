"""Is the learning rate far from what a range test takes? It asks `tune`'s judge."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from src.config.request import from_flag, merge
from src.diagnosis.finding import BADLY, Finding, Overlay
from src.diagnosis.levers import Rate
from src.diagnosis.probe import Observer
from src.tuning.choose import LEAST_FALL
from src.tuning.judge import best_rate

LOWEST, HIGHEST = 1e-6, 10.0  # of the rates that are tried
FAR = 4.0  # times the config's: a rate that is nearer is no suspect
SMITH = "range test (Smith, Cyclical Learning Rates for Training Neural Networks, 2017)"


class RangeTest(Rate, Observer):
    """Raises the rate from step to step, in place of the schedule's, until the loss breaks out.

    Args:
        steps: of the whole test.
    """

    name = "rates"

    def __init__(self, steps: int) -> None:
        self.rates = [LOWEST * (HIGHEST / LOWEST) ** (i / (steps - 1)) for i in range(steps)]
        self.losses: list[float] = []
        self.taken = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.config = self.most = max(map(float, self.highest.values()), default=0.0)

    def rate(self, group: dict[str, Any]) -> float:
        self.taken, self.config = True, max(self.config, float(group["lr"]))
        share = float(self.highest[id(group)]) / (self.most or 1)
        return self.rates[min(len(self.losses), len(self.rates) - 1)] * share

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        loss, taken = outputs.get("loss") if isinstance(outputs, dict) else outputs, self.taken
        self.taken = False
        if taken and isinstance(loss, torch.Tensor):
            self.losses.append(float(loss.detach()) * trainer.accumulate_grad_batches)
            lost = not math.isfinite(self.losses[-1]) or self.losses[-1] > 4 * abs(self.losses[0]) + 1
            trainer.should_stop = trainer.should_stop or lost

    def measured(self) -> dict[str, Any]:
        suggested, smooth = best_rate(self.rates, self.losses)
        falls = smooth and smooth[0] - min(smooth) >= LEAST_FALL * abs(smooth[0])
        found = {"rates": self.rates[: len(smooth)], "losses": smooth, "config": self.config}
        return found | ({"suggested": suggested} if suggested and falls else {})


def rate_suspects(config: dict[str, Any], given: dict[str, float], test: dict[str, Any]) -> list[Finding]:
    """The rate of the range test, where it is far from the config's; `given` has the config's rates by key."""
    now, then = test.get("config", 0.0), test.get("suggested", 0.0)
    if not (given and now and then) or 1 / FAR < then / now < FAR:
        return []
    side = "low" if then > now else "high"
    text = f"the learning rate is too {side}: {now:.3g}, a range test takes {then:.2g}"
    change = with_rates(config, {key: value * then / now for key, value in given.items()})
    numbers = {"range_test": float(f"{then:.2g}")}
    return [Finding(f"lr_too_{side}", BADLY, text, numbers, confidence=0.6, change=change, source=SMITH)]


def with_rates(config: dict[str, Any], rates: dict[str, float]) -> Overlay:
    overlay: Overlay = {}
    for key, value in rates.items():
        overlay = merge(overlay, from_flag(key, f"{float(f'{value:.2g}')!r}", config))
    return overlay
