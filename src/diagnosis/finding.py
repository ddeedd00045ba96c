"""What a check says: what is wrong, by which numbers, and the change of the config that mends it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BADLY, SLOW, SPACE = "does badly", "is slow", "does not fit"
MOST = 3  # findings that are told
WEIGHED = ("label_noise", "conflicting_labels", "no_activation")  # certain, but not what all else hangs on
REASON = 0.5  # confidence in what is tried of every config; a reason makes more of it
WITHOUT_REASON = ("too_narrow", "initial_weights", "optimizer_too_slow")  # help where others are the reason
Overlay = dict[str, Any]
Unknown = tuple[str, str]  # a check that could not run, and why
Row = tuple[Any, str, str, Overlay, dict[str, Any]]  # whether it is so, or MAYBE; check, line, what mends it, numbers


@dataclass(frozen=True)
class Finding:
    """What is wrong, or, until it is tried, what may be.

    Args:
        check: its name, such as `lr_too_high`.
        question: BADLY, SLOW or SPACE.
        text: what is wrong, in one line.
        evidence: numbers by name.
        gain: share of what can be won that the change wins back, from 0 to 1: of the loss that can be learned, of the
            time, of the memory that is missing. Expected, or measured where it was tried.
        confidence: from 0 to 1.
        change: overlay of the config; empty where no key mends it.
        todo: what to do, where there is no change.
        tried: whether the change was tried.
        certain: whether structure shows it, so that a short trial need not.
        metric: what a trial is judged by, if not by what the config monitors; more of it is better.
        source: paper, tool or formula.
    """

    check: str
    question: str
    text: str
    evidence: dict[str, Any] = field(default_factory=dict)
    gain: float = 0.0
    confidence: float = 0.5
    change: Overlay = field(default_factory=dict)
    todo: str = ""
    tried: bool = False
    certain: bool = False
    metric: str = ""
    source: str = ""

    @property
    def weight(self) -> float:
        return self.gain * self.confidence * (0.5 if self.check in WITHOUT_REASON else 1.0)

    @property
    def is_slip(self) -> bool:
        return self.certain and self.check not in WEIGHED


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """One of each check. What does not fit is first, because nothing trains then; next is what structure shows, because
    a rate that suits it helps only until it is mended; then the heaviest."""
    best: dict[str, Finding] = {}
    for one in findings:
        if one.check not in best or one.weight > best[one.check].weight:
            best[one.check] = one
    return sorted(best.values(), key=lambda one: (one.question != SPACE, not one.is_slip, -one.weight))[:MOST]
