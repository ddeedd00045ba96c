"""The validation of src.diagnose: seeded faults, healthy controls, and faults held out.

    python -m benchmarks.diagnose --jobs 2                       # all, in some hours of two cores
    python -m benchmarks.diagnose --faults mlp_lr_x30,wine_softmax --healthy 3
    python -m benchmarks.diagnose --only held_out --rules
    python -m benchmarks.diagnose --costs                        # what each fault costs, and stop

Each fault is trained with three seeds beside its base and counts if it costs something; then src.diagnose is asked, and
the change of its first finding is applied blindly and trained. --rules asks published rules, too. Every training and
answer is a line in --out: the same command goes on, and asks anew only where the code of src has changed. At the end
there are a table, page.md and diagnose.png there. The faults' truth stands in faults.py and held_out.py.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.diagnose import costs, report, rules, utility
from benchmarks.diagnose.cases import Case, written
from benchmarks.diagnose.faults import FAULTS
from benchmarks.diagnose.healthy import BARS, HEALTHY
from benchmarks.diagnose.held_out import HELD_OUT
from benchmarks.diagnose.runs import Job, Line, Lines, carry_out, config_digest, digest, preload, source_digest

GROUPS = {"faults": FAULTS, "healthy": HEALTHY, "held_out": HELD_OUT}


def options_of(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at once; with more than one, times are rough")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--faults", help="these alone, by name, of faults and held_out")
    parser.add_argument("--healthy", type=int, help="so many healthy runs, spread over all")
    parser.add_argument("--seeds", type=int, default=1, help="of the trainings with a change")
    parser.add_argument("--cost_seeds", type=int, default=len(costs.SEEDS), help="of the trainings with a fault")
    parser.add_argument("--minutes", type=float, default=2.0, help="for each answer of src.diagnose")
    parser.add_argument("--out", type=Path, default=Path("logs/diagnose_validation"))
    parser.add_argument("--costs", action="store_true", help="what the faults cost, and stop")
    parser.add_argument("--rules", action="store_true", help="published rules on the same cases")
    options = parser.parse_args(args)
    known = {case.name for case in (*FAULTS, *HELD_OUT)} | {""}
    if unknown := {*(options.faults or "").split(",")} - known:
        parser.error(f"--faults: there is no {sorted(unknown)[0]}")
    return options


def chosen(options: argparse.Namespace) -> dict[str, list[Case]]:
    groups = {name: GROUPS[name] for name in options.only}
    if options.faults is not None:
        names = options.faults.split(",")
        groups = {g: [c for c in cases if c.healthy or c.name in names] for g, cases in groups.items()}
    if options.healthy is not None and "healthy" in groups:
        every = max(1, len(HEALTHY) // max(1, options.healthy))
        groups["healthy"] = HEALTHY[::every][: options.healthy]
    return groups


def question(case: Case, out: Path, minutes: float, code: str) -> Job:
    """Asks src.diagnose of a case."""
    file, folder = written(case, out / "configs"), out / "runs" / f"ask_{case.name}"
    args = ["--config", str(file), "--minutes", str(minutes), "--json", str(folder / "found.json")]
    key = f"ask {case.name} {digest(config_digest(file), minutes, code)}"
    return Job(key, "src.diagnose", args, folder, answered, {"case": case.name})


def answered(folder: Path, code: int) -> Line:
    file = folder / "found.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return {name: found.get(name) for name in ("verdict", "findings", "unknown")}


def not_well(cases: list[Case], out: Path, lines: Lines) -> Iterator[str]:
    """Healthy runs that do not train well, and so are none."""
    for case in cases:
        name, bar = BARS[case.base]
        for line in costs.lines_of(case, out, lines, [seed_of(case)]):
            value = line["metrics"].get(name)
            more_is_better = name.endswith(("acc", "r2"))
            if value is None or (value < bar if more_is_better else value > bar):
                yield f"{case.name}: {name} {value}, not {bar}"


def seed_of(case: Case) -> int:
    return case.flags.get("seed_everything", 0)


def main(args: list[str] | None = None) -> int:
    options, out = options_of(args), None
    groups, out = chosen(options), options.out
    out.mkdir(parents=True, exist_ok=True)
    trainings, answers, code = Lines(out / "trainings.jsonl"), Lines(out / "answers.jsonl"), source_digest("src")
    faults = [case for cases in groups.values() for case in cases if not case.healthy]
    healthy = groups.get("healthy", [])
    preload()
    carry_out(costs.jobs(faults, out, range(options.cost_seeds)), trainings, options.jobs)
    for case in healthy:
        carry_out(costs.jobs([case], out, [seed_of(case)], with_base=False), trainings, options.jobs)
    (out / "costs.md").write_text(costs.table(faults, out, trainings) + "\n")
    bad = [*not_well(healthy, out, trainings)]
    print("\n".join([f"no healthy run: {line}" for line in bad]))
    if options.costs:
        print(costs.table(faults, out, trainings))
        return 0
    groups = {name: report.counted(cases, out, trainings) for name, cases in groups.items()}
    cases = [case for group in groups.values() for case in group if f"{case.name}:" not in " ".join(bad)]
    carry_out([question(case, out, options.minutes, code) for case in cases], answers, options.jobs)
    said = {case.name: answers.known[question(case, out, options.minutes, code).key] for case in cases}
    seeds = range(options.seeds)
    carry_out(utility.jobs(((case, said[case.name]) for case in cases), out, seeds), trainings, options.jobs)
    for case in cases:  # the same seeds without the change, of healthy runs that got one
        if case.healthy and utility.change_of(said[case.name]):
            carry_out(costs.jobs([case], out, seeds, with_base=False), trainings, options.jobs)
    table = ""
    if options.rules:
        carry_out([rules.job(case, out) for case in cases if case.costs != "memory"], answers, options.jobs)
        table = rules.table(cases, out, answers)
    found = {
        name: [report.answer(case, said[case.name], out, trainings, seeds) for case in group if case.name in said]
        for name, group in groups.items()
    }
    text = report.page(found, table, shlex.join(["python", "-m", "benchmarks.diagnose", *(args or sys.argv[1:])]))
    (out / "page.md").write_text(text)
    report.draw(found, out / "diagnose.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
