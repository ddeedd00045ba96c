"""The examination: the config as it is, its data, changes that may help, and what is left of all that as findings."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from src.diagnosis.finding import BADLY, SPACE, Finding, Unknown, ranked
from src.diagnosis.probe import Lab, Make, Probe
from src.diagnosis.subject import Short, Subject
from src.diagnosis.trials import Scale, Trials

WATCHED, WATCHED_SEC = 40, 15.0  # steps of the first training, and the most seconds it may take
CURVE_SEC, FEWEST = 5.0, 30  # of one of the trainings that are compared; its fewest steps
NOTHING = 0.97  # of the trivial score: what is above it has learned nothing


@dataclass
class Case:
    """What is known of a subject once it was watched.

    Args:
        steps: of the trainings that are compared.
        total: of a whole run; infinite where it has no end.
        first: the training that was watched.
        base: trainings of the config as it is, by seed.
        measured: numbers of the data and of the first training.
    """

    config: dict[str, Any]
    first: Probe
    steps: int = 0
    total: float = math.inf
    base: list[Probe] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)

    @property
    def whole(self) -> bool:
        """Whether the trainings that are compared are as long as a run."""
        return self.steps >= self.total


@dataclass
class Diagnosis:
    verdict: str = "healthy"  # or findings, or unknown
    findings: list[Finding] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    checked: int = 0

    def plain(self) -> dict[str, Any]:
        return asdict(self)


class Examination:
    """Args:
    folder: of the log, and files that changes name.
    budget_sec: for all of it.
    told: gets what is done next, for a progress bar.
    """

    def __init__(self, subject: Subject, folder: Path, budget_sec: float, told: Callable[[str], Any] = str) -> None:
        self.subject, self.folder, self.told = subject, folder, told
        self.lab = Lab(subject, folder / "probes.log", time.monotonic() + budget_sec)
        self.result = Diagnosis()

    def run(self, watches: Make = tuple) -> Diagnosis:
        self.told("the first steps")
        first = self.lab.run([Short(steps=WATCHED)], watches, WATCHED_SEC)[0]
        self.result.unknown += first.unknown
        self.result.measured |= first.measured
        if first.failed and not first.losses and first.code != 5:
            return self.broken(first)
        case = self.case(first)
        self.told("the config as it is")
        trials = Trials(self.lab, case.scale, case.steps, self.told)
        trials.run([{}], [0])
        case.base = [probe for probe in [trials.probe({}, 0)] if probe]
        suspects = [one for one in first.findings if one.change] + self.suspects(case)
        plain = [one for one in first.findings if not one.change]
        found = trials.judge([one for one in suspects if one.question == BADLY])
        self.result.measured["trials"] = trials.log
        self.result.findings = ranked([*plain, *found])
        self.settle(case)
        return self.result

    def broken(self, first: Probe) -> Diagnosis:
        """It cannot be trained at all."""
        check, question = ("out_of_memory", SPACE) if first.memory else ("does_not_train", BADLY)
        what, _, todo = first.failed.partition(" -> ")
        found = Finding(check, question, what, {"exit_code": first.code}, 1.0, 1.0, todo=todo or what, certain=True)
        self.result.findings, self.result.verdict = [found], "findings"
        return self.result

    def case(self, first: Probe) -> Case:
        config, step_sec = self.subject.config, sorted(first.step_sec)[len(first.step_sec) // 2 :][:1]
        total = total_steps(config, first)
        steps = round(min(max(CURVE_SEC / (step_sec[0] if step_sec else 0.01), FEWEST), total, 100_000))
        names = sorted(name for score in first.scores[:1] for name in score if name.startswith("val"))
        checkpoints = config.get("checkpoints") or {}
        losses = [name for name in names if "loss" in name]
        scale = Scale(checkpoints.get("monitor") or next(iter(losses), ""), checkpoints.get("mode") or "min")
        scale.trivial = self.result.measured.get("trivial_loss", first.losses[0] if first.losses else math.nan)
        return Case(config, first, steps, total, measured=self.result.measured, scale=scale)

    def suspects(self, case: Case) -> list[Finding]:
        if not case.config:
            text = "the learning rate is too"
            return [
                Finding(f"lr_too_{name}", BADLY, f"{text} {name}", change={"lr_times": times})
                for name, times in (("low", 10.0), ("high", 0.1))
            ]
        return []

    def settle(self, case: Case) -> None:
        """The verdict: what has learned nothing, without a finding that says why, is not healthy."""
        score = case.scale.score(case.base[0]) if case.base else math.inf
        poor = score > NOTHING * case.scale.trivial
        if poor and not self.result.findings:
            self.result.unknown.append(
                ("learning", f"the score is {score:.4g}, one answer for all gives {case.scale.trivial:.4g}")
            )
        self.result.verdict = "findings" if self.result.findings else "unknown" if poor else "healthy"


def total_steps(config: dict[str, Any], first: Probe) -> float:
    trainer, per_epoch = config.get("trainer") or {}, first.extra.get("steps_per_epoch") or math.inf
    epochs = trainer.get("max_epochs") or -1
    ends = (trainer.get("max_steps") or -1, epochs * per_epoch if epochs > 0 else -1)
    return min((n for n in ends if n > 0), default=math.inf)
