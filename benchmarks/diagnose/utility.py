"""Advice applied blindly: the first finding's change, as an overlay, and what comes back of what the fault costs."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from benchmarks.diagnose import costs
from benchmarks.diagnose.cases import BASES, Case, written
from benchmarks.diagnose.runs import Job, Line, Lines, config_digest, digest, training

FIXED = 0.5  # share that comes back


def change_of(line: Line) -> dict:
    """Of the first finding."""
    return line["findings"][0]["change"] if line.get("findings") else {}


def key_of(file: Path, case: Case, change: dict, seed: int) -> str:
    return f"fix {case.name} {seed} {digest(config_digest(file), sorted(map(str, change.items())))}"


def jobs(pairs: Iterable[tuple[Case, Line]], out: Path, seeds: Sequence[int]) -> Iterator[Job]:
    for case, line in pairs:
        change, file = change_of(line), written(case, out / "configs")
        if not change or case.costs in ("memory", "trust"):
            continue
        overlay = out / "changes" / f"{case.name}.yaml"
        overlay.parent.mkdir(exist_ok=True)
        overlay.write_text(yaml.safe_dump(change))
        for seed in seeds:
            about = {"case": case.name, "seed": seed}
            folder = out / "runs" / f"fix_{case.name}_{seed}"
            yield training(key_of(file, case, change, seed), [file, overlay], seed, folder, about)


def fixed_lines(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int]) -> list[Line]:
    change, file = change_of(line), written(case, out / "configs")
    found = (lines.known.get(key_of(file, case, change, seed)) for seed in seeds)
    return [one for one in found if one]


def come_back(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int]) -> float | None:
    """Share of what the fault costs that the change wins back, at most 1; None where there is no change to try. A
    fault costs at most what learning nothing does."""
    after = fixed_lines(case, line, out, lines, seeds) if change_of(line) else []
    if not after or case.costs in ("memory", "trust"):
        return None
    cost = costs.cost(case, out, lines, seeds)
    healthy, faulty = cost["healthy"], cost["faulty"]
    if case.costs == "speed":
        fixed = min(one["fit_sec"] if not one["exit_code"] else math.inf for one in after)
    else:
        fixed = statistics.mean(costs.metric(one, case.base) for one in after)
        faulty = min(faulty, max(BASES[case.base].trivial, healthy * 1.01))
    return max(-1.0, min(1.0, (faulty - fixed) / (faulty - healthy))) if faulty > healthy else None


def harms(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int]) -> bool:
    """Whether a change that a healthy run got makes it worse beyond noise."""
    before, after = costs.lines_of(case, out, lines, seeds), fixed_lines(case, line, out, lines, seeds)
    if not before or not after:
        return False
    a, b = ([costs.metric(one, case.base) for one in side] for side in (before, after))
    least = max(costs.DEVIATIONS * costs.spread(a), 2 * costs.FLOOR * statistics.mean(a))
    slow = min(one["fit_sec"] for one in after) > (1 + costs.SLOWER) * min(one["fit_sec"] for one in before)
    return statistics.mean(b) - statistics.mean(a) > least or slow
