"""The figures of the validation: a table, a picture, and a part of a page."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.diagnose import utility
from benchmarks.diagnose.cases import Case, flat, is_right
from benchmarks.diagnose.runs import Line, Lines
from src.run.figures import figure

GOALS = {"right": 0.90, "alarms": 0.05, "fixed": 0.50}


@dataclass(frozen=True)
class Answer:
    """What was said of a case. `fixed` is the share that comes back, None where no change could be tried."""

    case: Case
    line: Line
    first: bool
    among: bool
    back: float | None = None
    harm: bool = False

    @property
    def findings(self) -> list[dict[str, Any]]:
        return self.line.get("findings") or []

    @property
    def said(self) -> str:
        changes = [", ".join(f"{k} {v}" for k, v in flat(f["change"])) for f in self.findings[:1]]
        first = f"{self.findings[0]['check']}: {changes[0] or 'told'}" if self.findings else ""
        return (first or self.line.get("verdict") or f"exit code {self.line['exit_code']}")[:110]


def answer(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int]) -> Answer:
    right = [is_right(one, case.truth) for one in line.get("findings") or []]
    if case.healthy:
        return Answer(case, line, not right, not right, harm=utility.harms(case, line, out, lines, seeds))
    return Answer(case, line, right[:1] == [True], any(right), utility.come_back(case, line, out, lines, seeds))


def share(values: Iterable[bool]) -> float:
    listed = [*values]
    return sum(listed) / len(listed) if listed else math.nan


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of faults that count, or of healthy runs."""
    seconds = [a.line["seconds"] for a in answers]
    found: dict[str, Any] = {"cases": len(answers)}
    if not answers:
        return found
    if answers[0].case.healthy:
        found |= {"false alarms": share(bool(a.findings) for a in answers), "harmed": sum(a.harm for a in answers)}
    else:
        changed = [a for a in answers if a.back is not None]
        found |= {
            "right fault first": share(a.first for a in answers),
            "right among three": share(a.among for a in answers),
        }
        found |= {"changes tried": len(changed), "fixed, of changes": share(a.back >= utility.FIXED for a in changed)}
        mendable = [a for a in answers if a.case.costs in ("metric", "speed")]
        found["fixed, of all that a change could mend"] = share(
            (a.back or 0) >= utility.FIXED for a in mendable if mends(a.case)
        )
        found["said unknown"] = sum(a.line.get("verdict") == "unknown" for a in answers)
    found |= {"seconds, median": statistics.median(seconds), "seconds, most": max(seconds)}
    return found


def mends(case: Case) -> bool:
    """Whether a key of the config is among the right answers."""
    return any(" check " not in one for one in case.truth)


def by_family(answers: Sequence[Answer]) -> str:
    rows = ["| family | faults | right first | among three | fixed, of changes |", "|---|---|---|---|---|"]
    for family in dict.fromkeys(a.case.family for a in answers):
        some = [a for a in answers if a.case.family == family]
        changed = [a for a in some if a.back is not None]
        fixed = f"{sum(a.back >= utility.FIXED for a in changed)} of {len(changed)}"
        rows.append(
            f"| {family} | {len(some)} | {sum(a.first for a in some)} | {sum(a.among for a in some)} | {fixed} |"
        )
    return "\n".join(rows)


def failures(answers: Sequence[Answer]) -> str:
    """By name: the fault was not first, a change did not mend it, an alarm was false."""
    lines = []
    for a in answers:
        if a.case.healthy and a.findings:
            lines.append(f"- `{a.case.name}`, healthy: {a.said}{', which harmed it' if a.harm else ''}")
        elif not a.case.healthy and not a.first:
            lines.append(f"- `{a.case.name}` ({a.case.family}): {'second or third; first ' if a.among else ''}{a.said}")
        elif a.back is not None and a.back < utility.FIXED:
            lines.append(f"- `{a.case.name}` ({a.case.family}): right, but {a.back:.0%} came back: {a.said}")
    return "\n".join(lines) or "none"


HEAD = """## Diagnosis

A fault is a small change of a run that trains well; it counts where it costs more than two standard deviations of the
healthy test metric over {seeds} seeds and a hundredth of it, or a tenth of the time. What is right to answer was
written down before: a set of changes of the config, or the name of a finding where no key mends it. The first finding's
change is then applied blindly; `fixed` is where at least half of what the fault costs comes back. Healthy runs differ
in task, network, optimizer, rate, batch, regularization and seed; each trains well, and a finding on one is a false
alarm. Seconds are without those in which Python loads torch. Nothing of `src.diagnose` runs while `src.train` trains.
"""


def page(groups: dict[str, list[Answer]], dropped: Sequence[str], rules: str, command: str, seeds: int = 3) -> str:
    """A part of docs/results.md. `dropped`: faults that cost too little, and healthy runs that do not train well."""
    parts = [HEAD.format(seeds=seeds)]
    for name, answers in groups.items():
        found = figures(answers)
        shown = [f"{key} {form(key, value)}" for key, value in found.items()]
        parts += [f"**{name}**: {'; '.join(shown)}.", ""]
        if answers and not answers[0].case.healthy:
            parts += [by_family(answers), ""]
        parts += ["Failures:", "", failures(answers), ""]
    parts += [f"Left out: {', '.join(dropped) or 'none'}.", ""]
    return "\n".join([*parts, rules, "", f"Command: `{command}`", ""])


def form(key: str, value: Any) -> str:
    return f"{value:.0f}" if key.startswith("seconds") else f"{value:.1%}" if isinstance(value, float) else str(value)


def draw(groups: dict[str, list[Answer]], file: Path) -> None:
    """Right, missed and false by group, and how much comes back of each change."""
    fig = figure(11, 4.5)
    left, right = fig.subplots(1, 2)
    names = [name for name in groups if groups[name]]
    for i, name in enumerate(names):
        answers = groups[name]
        good = share(a.first for a in answers)
        later = share(a.among and not a.first for a in answers)
        left.barh(i, good, color="C0")
        left.barh(i, later, left=good, color="C1")
        left.text(0.02, i, f"{good:.0%} of {len(answers)}", va="center", color="w")
    left.set_yticks(range(len(names)), names)
    left.set(title="right first (healthy: no alarm), orange: second or third", xlim=(0, 1))
    back = sorted(a.back for answers in groups.values() for a in answers if a.back is not None)
    right.bar(range(len(back)), back, color=["C0" if b >= utility.FIXED else "C3" for b in back])
    right.axhline(utility.FIXED, color="0.5", linewidth=0.8)
    right.set(title="what comes back of the loss or time, by change", xlabel="changes", ylim=(-1.05, 1.05))
    fig.savefig(file)
