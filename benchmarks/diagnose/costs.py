"""What a fault costs: its base and it are trained with some seeds. It counts if it is worse beyond noise."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.diagnose import programs
from benchmarks.diagnose.cases import BASES, Case, written
from benchmarks.diagnose.runs import Job, Line, Lines, config_digest, digest, training

SEEDS = (0, 1, 2)
FLOOR, DEVIATIONS = 0.01, 2.0  # share of the healthy metric, and standard deviations of it, that a fault costs at least
SLOWER = 0.10


def base_of(case: Case) -> Case:
    return Case(case.base if BASES[case.base].is_module else f"base_{case.base}", case.base)


def jobs(cases: Iterable[Case], out: Path, seeds: Sequence[int] = SEEDS, with_base: bool = True) -> Iterator[Job]:
    """Of each case, and of its base."""
    chosen = [case for case in cases if case.costs != "memory"]
    bases = [base_of(case) for case in chosen if with_base and case.costs != "speed"]
    for case in {one.name: one for one in (*bases, *chosen)}.values():
        for seed in seeds:
            if case.costs == "speed" and with_base:  # just before, because a machine is now fast, now slow
                yield job(base_of(case), out, seed, f"beside_{case.name}")
            yield job(case, out, seed)


def job(case: Case, out: Path, seed: int, what: str = "train", change: dict[str, Any] | None = None) -> Job:
    """A training of it, with an overlay of its config, or with what a change of a module says."""
    about, folder = {"case": case.name, "seed": seed}, out / "runs" / f"{what}_{case.name}_{seed}"
    key = f"{what} {case.name} {seed}" + (f" {digest(json.dumps(change, sort_keys=True))}" if change else "")
    if BASES[case.base].is_module:
        return programs.job(key, ["train", case.name, str(seed)], folder, programs.trained, about, change)
    files = [written(case, out / "configs")]
    key += f" {config_digest(files[0])}"
    if change:
        files.append(out / "changes" / f"{case.name}.yaml")
        files[1].parent.mkdir(exist_ok=True, parents=True)
        files[1].write_text(yaml.safe_dump(change))
    return training(key, files, seed, folder, about)


def lines_of(case: Case, out: Path, lines: Lines, seeds: Sequence[int] = SEEDS, what: str = "train") -> list[Line]:
    found = (lines.known.get(job(case, out, seed, what).key) for seed in seeds)
    return [line for line in found if line]


def metric(line: Line, base: str) -> float:
    """Less is better; of a run that failed it is infinite."""
    name = BASES[base].metric
    value = line["metrics"].get(name)
    value = 1 - value if value is not None and name.endswith("acc") else value
    return math.inf if line["exit_code"] or value is None or not math.isfinite(value) else value


def cost(case: Case, out: Path, lines: Lines, seeds: Sequence[int] = SEEDS) -> Line:
    """The healthy and the faulty figure, means over seeds, and whether the fault counts."""
    if case.costs == "memory":
        return {"healthy": 0.0, "faulty": math.inf, "counts": True}
    what = f"beside_{case.name}" if case.costs == "speed" else "train"
    healthy, faulty = lines_of(base_of(case), out, lines, seeds, what), lines_of(case, out, lines, seeds)
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
    """Seconds of training: the least of the base, as if it were as long, and by how much a fault is slower than the run
    before it, the median of the pairs."""
    long = length(case) / length(base_of(case))
    times = [b["fit_sec"] / max(a["fit_sec"] * long, 1e-3) for a, b in zip(healthy, faulty, strict=False)]
    least, ratio = min(line["fit_sec"] for line in healthy) * long, statistics.median(times)
    return {"healthy": least, "faulty": least * ratio, "counts": ratio > 1 + SLOWER}


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
