"""What a fault costs: its base and it are trained with some seeds. It counts if it is worse beyond noise."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.diagnose.cases import BASES, Case, written
from benchmarks.diagnose.runs import Job, Line, Lines, config_digest, training

SEEDS = (0, 1, 2)
FLOOR, DEVIATIONS = 0.01, 2.0  # share of the healthy metric, and standard deviations of it, that a fault costs at least
SLOWER = 0.10


def base_of(case: Case) -> Case:
    return Case(f"base_{case.base}", case.base)


def key_of(case: Case, file: Path, seed: int, what: str = "train") -> str:
    return f"{what} {case.name} {seed} {config_digest(file)}"


def jobs(cases: Iterable[Case], out: Path, seeds: Sequence[int] = SEEDS, with_base: bool = True) -> Iterator[Job]:
    """Of each case, and of its base."""
    both = ((base_of(case), case) if with_base else (case,) for case in cases if case.costs != "memory")
    for case in {one.name: one for pair in both for one in pair}.values():
        file = written(case, out / "configs")
        for seed in seeds:
            key, name = key_of(case, file, seed), f"{case.name}_{seed}"
            yield training(key, [file], seed, out / "runs" / name, {"case": case.name, "seed": seed})


def lines_of(case: Case, out: Path, lines: Lines, seeds: Sequence[int] = SEEDS) -> list[Line]:
    file = written(case, out / "configs")
    found = (lines.known.get(key_of(case, file, seed)) for seed in seeds)
    return [line for line in found if line]


def metric(line: Line, base: str) -> float:
    """Less is better; of a run that failed it is infinite."""
    value = line["metrics"].get(BASES[base].metric)
    return math.inf if line["exit_code"] or value is None or not math.isfinite(value) else value


def cost(case: Case, out: Path, lines: Lines, seeds: Sequence[int] = SEEDS) -> Line:
    """The healthy and the faulty figure, means over seeds, and whether the fault counts."""
    if case.costs == "memory":
        return {"healthy": 0.0, "faulty": math.inf, "counts": True}
    healthy, faulty = lines_of(base_of(case), out, lines, seeds), lines_of(case, out, lines, seeds)
    if not healthy or not faulty:
        return {"healthy": math.nan, "faulty": math.nan, "counts": False}
    if case.costs == "speed":
        return speed(case, healthy, faulty)
    found = worse(*([metric(line, case.base) for line in side] for side in (healthy, faulty)))
    if case.costs == "trust" and not found["counts"]:
        found = worse(*([trust(line) for line in side] for side in (healthy, faulty)))
    return found


def worse(healthy: list[float], faulty: list[float]) -> Line:
    least = max(DEVIATIONS * spread(healthy), FLOOR * abs(statistics.mean(healthy)))
    a, b = statistics.mean(healthy), statistics.mean(faulty)
    return {"healthy": a, "faulty": b, "counts": b - a > least}


def speed(case: Case, healthy: list[Line], faulty: list[Line]) -> Line:
    """Seconds of training, the least of all seeds, because other work on the machine only adds to them; those of the
    base as if it were as long."""
    a, b = (min(line["fit_sec"] for line in side) for side in (healthy, faulty))
    a *= length(case) / length(base_of(case))
    return {"healthy": a, "faulty": b, "counts": b > (1 + SLOWER) * a}


def length(case: Case) -> float:
    """Epochs, or steps, of a run, as its flags say."""
    flags = BASES[case.base].flags | case.flags
    return flags.get("trainer.max_steps") or flags.get("trainer.max_epochs") or 1


def trust(line: Line) -> float:
    """By what factor, as a logarithm, val's loss differs from test's."""
    val, test = line["metrics"].get("val/loss"), line["metrics"].get("test/loss")
    return abs(math.log(max(val, 1e-6) / max(test, 1e-6))) if val and test else math.inf


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0


def table(cases: Iterable[Case], out: Path, lines: Lines) -> str:
    rows = ["| fault | family | what it costs | healthy | faulty | counts |", "|---|---|---|---|---|---|"]
    for case in cases:
        found = cost(case, out, lines)
        figures = " | ".join(f"{found[name]:.4g}" for name in ("healthy", "faulty"))
        rows.append(
            f"| `{case.name}` | {case.family} | {case.costs} | {figures} | {'yes' if found['counts'] else 'NO'} |"
        )
    return "\n".join(rows)
