"""Advice applied blindly, with seeds that nothing was chosen by: what comes back of what a fault costs; its harm."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.diagnose import costs
from benchmarks.diagnose.cases import BASES, Case
from benchmarks.diagnose.runs import Job, Line, Lines

FIXED = 0.5  # share that comes back
SEEDS = (100, 101, 102)


def change_of(line: Line) -> dict:
    """Of the first finding."""
    return line["findings"][0]["change"] if line.get("findings") else {}


def jobs(pairs: Iterable[tuple[Case, Line]], out: Path, seeds: Sequence[int] = SEEDS) -> Iterator[Job]:
    for case, line in pairs:
        if not (change := change_of(line)) or case.costs == "memory":
            continue
        for seed in seeds:
            if case.costs == "speed":
                yield costs.job(case, out, seed, "again")
            yield costs.job(case, out, seed, "fix", change)


def fixed_lines(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int]) -> list[Line]:
    if not (change := change_of(line)):
        return []
    found = (lines.known.get(costs.job(case, out, seed, "fix", change).key) for seed in seeds)
    return [one for one in found if one]


def come_back(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int] = SEEDS) -> float | None:
    """Share of what the fault costs that the change wins back, at most 1; None where there is no change to try. A
    fault costs at most what learning nothing does."""
    after = fixed_lines(case, line, out, lines, seeds)
    if not after or case.costs in ("memory", "trust"):
        return None
    cost = costs.cost(case, out, lines)
    healthy, faulty = cost["healthy"], cost["faulty"]
    if case.costs == "speed":
        again = costs.lines_of(case, out, lines, seeds, "again")
        times = [
            b["fit_sec"] / a["fit_sec"] if not b["exit_code"] else math.inf for a, b in zip(again, after, strict=True)
        ]
        fixed = faulty * statistics.median(times)
    else:
        fixed = statistics.mean(costs.metric(one, case.base) for one in after)
        faulty = min(faulty, max(BASES[case.base].trivial, healthy * 1.01))
    return max(-1.0, min(1.0, (faulty - fixed) / (faulty - healthy))) if faulty > healthy else None


def harms(case: Case, line: Line, out: Path, lines: Lines, seeds: Sequence[int] = SEEDS) -> bool:
    """Whether a change makes a case, healthy or faulty, worse beyond the noise of both sides; or slower, where it is
    healthy or should get faster. What makes a fault better may take its time."""
    what = "again" if case.costs == "speed" else "train"
    own = seeds if case.healthy or case.costs == "speed" else costs.SEEDS
    before, after = costs.lines_of(case, out, lines, own, what), fixed_lines(case, line, out, lines, seeds)
    if not before or not after:
        return False
    a, b = ([costs.metric(one, case.base) for one in side] for side in (before, after))
    least = max(costs.DEVIATIONS * max(costs.spread(a), costs.spread(b)), 2 * costs.FLOOR * abs(statistics.mean(a)))
    slow = min(one["fit_sec"] for one in after) > (1 + costs.SLOWER) * min(one["fit_sec"] for one in before)
    timed = case.healthy or line["findings"][0]["question"] == "is slow"
    worse = statistics.mean(b) > statistics.mean(a) + least if math.isfinite(statistics.mean(a)) else False
    return worse or (timed and slow)
