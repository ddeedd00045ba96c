import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Learning rate that rises linearly, then falls along half a cosine (Loshchilov and Hutter, SGDR, 2017).

    Args:
        num_steps: optimizer steps of the whole run; filled in from the trainer.
        warmup_frac: share of the run in which the rate rises.
        final_frac: rate at the end, as a share of the highest.
        warmup_steps: optimizer steps in which the rate rises, in place of `warmup_frac`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int = 1,
        warmup_frac: float = 0.05,
        final_frac: float = 0.0,
        warmup_steps: int | None = None,
    ) -> None:
        self.num_steps, self.final_frac = num_steps, final_frac
        self.warmup = in_steps("warmup", warmup_frac, warmup_steps, num_steps)
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Where it is; its shape follows from the config, so that a fork may train for longer."""
        return {name: self.__dict__[name] for name in ("last_epoch", "base_lrs", "_last_lr", "_step_count")}

    def get_lr(self) -> list[float | Tensor]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]

    def factor(self, step: int) -> float:
        """The rate at an optimizer step (the first is 0), as a share of the highest."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        share = min(1.0, (step - self.warmup) / max(1.0, self.num_steps - self.warmup))
        return self.final_frac + (1 - self.final_frac) * 0.5 * (1 + math.cos(math.pi * share))


class WarmupStableDecay(WarmupCosine):
    """Learning rate that rises linearly, stays, and falls linearly (Hu et al., MiniCPM, 2024).

    Args:
        num_steps: optimizer steps of the whole run; filled in from the trainer.
        warmup_frac: share of the run in which the rate rises.
        decay_frac: share of the run in which it falls; 0 keeps it constant to the end.
        final_frac: rate at the end, as a share of the highest.
        warmup_steps: optimizer steps in which the rate rises, in place of `warmup_frac`.
        decay_steps: optimizer steps in which it falls, in place of `decay_frac`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int = 1,
        warmup_frac: float = 0.05,
        decay_frac: float = 0.2,
        final_frac: float = 0.0,
        warmup_steps: int | None = None,
        decay_steps: int | None = None,
    ) -> None:
        self.decay = in_steps("decay", decay_frac, decay_steps, num_steps)
        super().__init__(optimizer, num_steps, warmup_frac, final_frac, warmup_steps)

    def factor(self, step: int) -> float:
        left = self.num_steps - step
        if step < self.warmup or left >= self.decay:
            return min(1.0, (step + 1) / (self.warmup + 1))
        return self.final_frac + (1 - self.final_frac) * max(0.0, left / self.decay)


def in_steps(name: str, share: float, steps: int | None, num_steps: int) -> float:
    """A part of a run of `num_steps`, given as a share of it or in steps; it may end early.

    Raises:
        ValueError: it is less than nothing, or more than the whole.
    """
    if not 0 <= share <= 1 or (steps or 0) < 0:
        raise ValueError(f"{name}_frac is from 0 to 1, and {name}_steps at least 0, not {share} and {steps}")
    return share * num_steps if steps is None else steps
