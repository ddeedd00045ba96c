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
    """

    def __init__(
        self, optimizer: Optimizer, num_steps: int = 1, warmup_frac: float = 0.05, final_frac: float = 0.0
    ) -> None:
        check_share("warmup_frac", warmup_frac)
        warmup = warmup_frac * num_steps

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
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int = 1,
        warmup_frac: float = 0.05,
        decay_frac: float = 0.2,
        final_frac: float = 0.0,
    ) -> None:
        check_share("warmup_frac", warmup_frac)
        check_share("decay_frac", decay_frac)
        warmup, decay = warmup_frac * num_steps, decay_frac * num_steps

        def factor(step: int) -> float:
            left = num_steps - step
            if step < warmup or left >= decay:
                return min(1.0, (step + 1) / (warmup + 1))
            return final_frac + (1 - final_frac) * max(0.0, left / decay)

        super().__init__(optimizer, factor)


def check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is from 0 to 1, not {share}")
