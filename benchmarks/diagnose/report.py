"""The figures of the validation: a table, a picture, and a part of a page."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.diagnose import utility
from benchmarks.diagnose.cases import Case, flat, is_right
from benchmarks.diagnose.held_out import PROGRAMS
from benchmarks.diagnose.runs import Line, Lines
from src.run.figures import figure


@dataclass(frozen=True)
class Answer:
    """What was said of a case: strictly and widely right first, widely right among three. `back` is the share that
    comes back, None where no change could be tried."""

    case: Case
    line: Line
    first: bool = False
    wide: bool = False
    among: bool = False
    back: float | None = None
    harm: bool = False

    @property
    def findings(self) -> list[dict[str, Any]]:
        return self.line.get("findings") or []

    @property
    def kind(self) -> str:
        """A crash, findings, unknown or healthy."""
        return "crash" if self.line["exit_code"] or not self.line.get("verdict") else self.line["verdict"]

    @property
    def right(self) -> bool:
        return self.kind == "healthy" if self.case.healthy else self.first

    @property
    def said(self) -> str:
        changes = [", ".join(f"{k} {v}" for k, v in flat(f["change"])) for f in self.findings[:1]]
        first = f"{self.findings[0]['check']}: {changes[0] or 'told'}" if self.findings else ""
        crash = f"exit code {self.line['exit_code']}" if self.kind == "crash" else ""
        return (crash or first or self.kind)[:110]


def answer(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int]) -> Answer:
    harm = utility.harms(case, line, out, lines, seeds)
    if case.healthy:
        return Answer(case, line, harm=harm)
    told = [] if line["exit_code"] else line.get("findings") or []
    strict, wide = ([is_right(one, truth) for one in told] for truth in (case.truth, case.truth + case.wide))
    back = utility.come_back(case, line, out, lines, seeds)
    return Answer(case, line, strict[:1] == [True], wide[:1] == [True], any(wide), back, harm)


def share(values: Iterable[bool]) -> float:
    listed = [*values]
    return sum(listed) / len(listed) if listed else math.nan


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of faults that count, or of healthy runs; `unknown` and crashes are none of the right answers."""
    found: dict[str, Any] = {"cases": len(answers)}
    if not answers:
        return found
    found["right" if answers[0].case.healthy else "right first"] = share(a.right for a in answers)
    if answers[0].case.healthy:
        found["false alarms"] = share(a.kind == "findings" for a in answers)
    else:
        mendable = [a for a in answers if a.case.costs in ("metric", "speed")]
        found |= {"wide": share(a.wide for a in answers), "wide among three": share(a.among for a in answers)}
        found |= {"fixed": share((a.back or 0) >= utility.FIXED for a in mendable), "of": len(mendable)}
        found |= {"with a change": sum(a.back is not None for a in mendable)}
        found["said healthy"] = sum(a.kind == "healthy" for a in answers)
    found |= {"unknown": sum(a.kind == "unknown" for a in answers), "crashes": sum(a.kind == "crash" for a in answers)}
    seconds = [a.line["seconds"] for a in answers]
    found |= {"harmed": sum(a.harm for a in answers)}
    rough = "" if all(a.line.get("fresh") for a in answers) else " (rough)"
    return found | {f"seconds{rough}, median": statistics.median(seconds), f"seconds{rough}, most": max(seconds)}


def by_family(answers: Sequence[Answer]) -> str:
    rows = ["| family | faults | right first | wide | wide among three | fixed |", "|---|---|---|---|---|---|"]
    for family in dict.fromkeys(a.case.family for a in answers):
        some = [a for a in answers if a.case.family == family]
        counts = (sum(getattr(a, name) for a in some) for name in ("first", "wide", "among"))
        mendable = [a for a in some if a.case.costs in ("metric", "speed")]
        fixed = f"{sum((a.back or 0) >= utility.FIXED for a in mendable)} of {len(mendable)}"
        rows.append(" | ".join([f"| {family}", str(len(some)), *map(str, counts), f"{fixed} |"]))
    return "\n".join(rows)


def failures(answers: Sequence[Answer]) -> str:
    """By name: what is not right, was not mended, or was harmed."""
    lines = []
    for a in answers:
        harm, what = ", which harmed it" if a.harm else "", a.case.family or "healthy"
        where = "right in the wide sense; " if a.wide else "second or third; first " if a.among else ""
        if not a.right:
            lines.append(f"- `{a.case.name}` ({what}): {where}{a.said}{harm}")
        elif harm or (a.back is not None and a.back < utility.FIXED):
            lines.append(f"- `{a.case.name}` ({what}): right, but {a.back or 0:.0%} came back: {a.said}{harm}")
    return "\n".join(lines) or "none"


HEAD = """## Diagnosis

A fault is a small change of a run that trains well; it counts where it costs more than two standard deviations of the
healthy test metric over {seeds} seeds and a hundredth of it, or a tenth of the time. What is right to answer was
written down before. `Right first` is strict: the first finding changes the key that was changed, at least half the way
back, or is the named check; `wide` is any change that is known to help. The first finding's change is then applied
blindly, and trained with seeds that nothing was chosen by; `fixed` are those of all faults of metric or speed where at
least half of the cost comes back, so a finding without a change fixes nothing. `harmed` are cases, healthy or faulty,
that the change makes worse beyond noise. A healthy run is right only if the answer is `healthy` and the exit code 0.
Seconds are of a fresh process where one job ran at a time, else rough. Nothing of `src.diagnose` runs while
`src.train` trains.

`held_out` is not of another kind: most of its cases share classes or keys with seeded families, on another base or with
another dose. Those that do not are programs of studies, and stand apart; the ends of some of these are of seeded
classes, too. `modules` are LightningModules of others' kind, asked from Python, each fault beside its healthy twin.
`others` and `unseen` were written without sight of the checks; `unseen` was asked for the first time after the
thresholds of commit e26ed57 were frozen.
"""


def page(groups: dict[str, list[Answer]], dropped: Sequence[str], rules: str, command: str, seeds: int = 3) -> str:
    """A part of docs/results.md. `dropped`: faults that cost too little, and healthy runs that do not train well."""
    parts = [HEAD.format(seeds=seeds)]
    for name, answers in apart(groups).items():
        found = figures(answers)
        shown = [f"{key} {form(key, value)}" for key, value in found.items()]
        parts += [f"**{name}**: {'; '.join(shown)}.", ""]
        if answers and not answers[0].case.healthy:
            parts += [by_family(answers), ""]
        parts += ["Failures:", "", failures(answers), ""]
    parts += [f"Left out: {', '.join(dropped) or 'none'}.", ""]
    return "\n".join([*parts, rules, "", f"Command: `{command}`", ""])


def apart(groups: dict[str, list[Answer]]) -> dict[str, list[Answer]]:
    """Healthy and faulty ones of a group, and of those held out the programs of studies."""
    out: dict[str, list[Answer]] = {}
    for name, answers in groups.items():
        for a in answers:
            kind = ", healthy" if a.case.healthy and name != "healthy" else ""
            kind = ", programs of studies" if name == "held_out" and a.case.name in PROGRAMS else kind
            out.setdefault(name + kind, []).append(a)
    return out


def form(key: str, value: Any) -> str:
    return f"{value:.0f}" if key.startswith("seconds") else f"{value:.1%}" if isinstance(value, float) else str(value)


def draw(groups: dict[str, list[Answer]], file: Path) -> None:
    """Right, missed and false by group, and how much comes back of each change."""
    fig = figure(11, 4.5)
    left, right = fig.subplots(1, 2)
    bars = apart(groups)
    for i, answers in enumerate(bars.values()):
        good, later = share(a.right for a in answers), share(a.among and not a.right for a in answers)
        left.barh(i, good, color="C0")
        left.barh(i, later, left=good, color="C1")
        left.text(0.02, i, f"{good:.0%} of {len(answers)}", va="center", color="w")
    left.set_yticks(range(len(bars)), [*bars])
    left.set(title="right first (strict), orange: in a wide sense, or later", xlim=(0, 1))
    back = sorted(a.back for answers in groups.values() for a in answers if a.back is not None)
    right.bar(range(len(back)), back, color=["C0" if b >= utility.FIXED else "C3" for b in back])
    right.axhline(utility.FIXED, color="0.5", linewidth=0.8)
    right.set(title="what comes back of the loss or time, by change", xlabel="changes", ylim=(-1.05, 1.05))
    fig.savefig(file)
