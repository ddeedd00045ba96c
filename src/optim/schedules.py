"""Learning rates over a run of known length.

Torch's own schedules keep that length in their state, with which a fork could not train for longer. The function of a
LambdaLR is no part of its state.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
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
        warmup = in_steps("warmup", warmup_frac, warmup_steps, num_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            share = min(1.0, (step - warmup) / max(1.0, num_steps - warmup))
            return final_frac + (1 - final_frac) * 0.5 * (1 + math.cos(math.pi * share))

        super().__init__(optimizer, factor)


class WarmupStableDecay(LambdaLR):
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
        warmup = in_steps("warmup", warmup_frac, warmup_steps, num_steps)
        decay = in_steps("decay", decay_frac, decay_steps, num_steps)

        def factor(step: int) -> float:
            left = num_steps - step
            if step < warmup or left >= decay:
                return min(1.0, (step + 1) / (warmup + 1))
            return final_frac + (1 - final_frac) * max(0.0, left / decay)

        super().__init__(optimizer, factor)


def in_steps(name: str, share: float, steps: int | None, num_steps: int) -> float:
    """A part of a run of `num_steps`, given as a share of it or in steps; it may end early.

    Raises:
        ValueError: it is less than nothing, or more than the whole.
    """
    if not 0 <= share <= 1 or (steps or 0) < 0:
        raise ValueError(f"{name}_frac is from 0 to 1, and {name}_steps at least 0, not {share} and {steps}")
    return share * num_steps if steps is None else steps
