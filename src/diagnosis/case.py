"""What is known of a subject once it was watched: how long its run is, how it trains, and what it is judged by."""

import math
from dataclasses import dataclass, field
from typing import Any

from src.diagnosis.probe import Probe
from src.diagnosis.suspects import falls
from src.diagnosis.trials import Scale

ENOUGH = 300  # steps after which a loss that is still tells something


@dataclass
class Case:
    """Args:
    steps: of the trainings that are compared.
    total: of a whole run; infinite where it has no end.
    first: the training that was watched.
    base: trainings of the config as it is, by seed.
    judged: whether something tells what is meant to become less.
    measured: numbers of the data and of the first training.
    """

    config: dict[str, Any]
    first: Probe
    steps: int = 0
    total: float = math.inf
    base: list[Probe] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    judged: bool = True

    @property
    def whole(self) -> bool:
        """Whether the trainings that are compared are as long as a run."""
        return self.steps >= self.total

    @property
    def still(self) -> bool:
        """Whether a module, whose run may have no end, has long ceased to learn."""
        ended = [probe.losses for probe in self.base if len(probe.losses) >= ENOUGH and not falls(probe.losses)]
        return "model" not in self.config and bool(ended)


def total_steps(config: dict[str, Any], first: Probe) -> float:
    trainer, per_epoch = config.get("trainer") or {}, first.extra.get("steps_per_epoch") or math.inf
    epochs = trainer.get("max_epochs") or -1
    ends = (trainer.get("max_steps") or -1, epochs * per_epoch if epochs > 0 else -1)
    return min((n for n in ends if n > 0), default=math.inf)
