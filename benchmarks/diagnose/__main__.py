"""The validation of src.diagnose: seeded faults, healthy controls, modules of others, and faults held out.

    python -m benchmarks.diagnose --jobs 2                       # all, in some hours of two cores
    python -m benchmarks.diagnose --faults mlp_lr_x30,wine_softmax --healthy 3
    python -m benchmarks.diagnose --only held_out --rules
    python -m benchmarks.diagnose --costs                        # what each fault costs, and stop

Each fault is trained with three seeds beside its base and counts if it costs something; then src.diagnose is asked,
and the change of its first finding is applied blindly, with three other seeds. --rules asks published rules, too.
Every training and answer is a line in --out: the same command goes on, and asks anew only where the code of src has
changed; the first answer counts, also where it is a crash, unless --again. At the end there are a table, page.md and
diagnose.png there. The faults' truth stands in faults.py, slips.py and held_out.py. Cases on data that need a
download are left out where LEYDEN_DATA_DIR does not name their folder.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.diagnose import costs, programs, report, rules, utility
from benchmarks.diagnose.cases import BASES, Case, written
from benchmarks.diagnose.faults import FAULTS
from benchmarks.diagnose.healthy import BARS, HEALTHY
from benchmarks.diagnose.held_out import HELD_OUT
from benchmarks.diagnose.others import CASES as OTHERS
from benchmarks.diagnose.runs import Job, Line, Lines, carry_out, config_digest, digest, preload, source_digest
from benchmarks.diagnose.slips import MODULES
from benchmarks.diagnose.unseen import CASES as UNSEEN

GROUPS = {"faults": FAULTS, "healthy": HEALTHY, "modules": MODULES, "held_out": HELD_OUT, "others": OTHERS}
GROUPS |= {"unseen": UNSEEN}


def options_of(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at once; with more than one, times are rough")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--faults", help="these alone, by name")
    parser.add_argument("--healthy", type=int, help="so many healthy runs, spread over all")
    parser.add_argument("--seeds", type=int, default=len(utility.SEEDS), help="of the trainings with a change")
    parser.add_argument("--cost_seeds", type=int, default=len(costs.SEEDS), help="of the trainings with a fault")
    parser.add_argument("--minutes", type=float, default=2.0, help="for each answer of src.diagnose")
    parser.add_argument("--out", type=Path, default=Path("logs/diagnose_validation"))
    parser.add_argument("--costs", action="store_true", help="what the faults cost, and stop")
    parser.add_argument("--again", action="store_true", help="what ended with exit code 1, once more")
    parser.add_argument("--rules", action="store_true", help="published rules on the same cases")
    options = parser.parse_args(args)
    known = {case.name for cases in GROUPS.values() for case in cases} | {""}
    if unknown := {*(options.faults or "").split(",")} - known:
        parser.error(f"--faults: there is no {sorted(unknown)[0]}")
    return options


def chosen(options: argparse.Namespace) -> dict[str, list[Case]]:
    there = "LEYDEN_DATA_DIR" in os.environ
    groups = {name: [c for c in GROUPS[name] if there or not BASES[c.base].reads_files] for name in options.only}
    if options.faults is not None:
        names = options.faults.split(",")
        groups = {g: [c for c in cases if g == "healthy" or c.name in names] for g, cases in groups.items()}
    if options.healthy is not None and "healthy" in groups:
        every = max(1, len(groups["healthy"]) // max(1, options.healthy))
        groups["healthy"] = groups["healthy"][::every][: options.healthy]
    return groups


def question(case: Case, out: Path, minutes: float, code: str) -> Job:
    """Asks src.diagnose of a case."""
    folder, about = out / "runs" / f"ask_{case.name}", {"case": case.name}
    if BASES[case.base].is_module:
        key = f"ask {case.name} {digest(minutes, code)}"
        return programs.job(key, ["ask", case.name, str(minutes)], folder, answered, about)
    file = written(case, out / "configs")
    args = ["--config", str(file), "--minutes", str(minutes), "--json", str(folder / "found.json")]
    key = f"ask {case.name} {digest(config_digest(file), minutes, code)}"
    return Job(key, "src.diagnose", args, folder, answered, about)


def answered(folder: Path, code: int) -> Line:
    file = folder / "found.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return {name: found.get(name) for name in ("verdict", "findings", "unknown")}


def not_well(cases: list[Case], out: Path, lines: Lines) -> Iterator[tuple[str, str]]:
    """Healthy runs that do not train well, and so are none; and why."""
    for case in cases:
        if case.base not in BARS:  # a module, for which nobody has set a bar
            continue
        name, bar = BARS[case.base]
        for line in costs.lines_of(case, out, lines, [seed_of(case)]):
            value = line["metrics"].get(name)
            more_is_better = name.endswith(("acc", "r2"))
            if value is None or (value < bar if more_is_better else value > bar):
                yield case.name, f"{name} {value}, not {bar}"


def seed_of(case: Case) -> int:
    return case.flags.get("seed_everything", 0)


class Validation:
    """What is on disk of it, and the steps, each of which goes on from there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out, self.groups = options, options.out, chosen(options)
        self.out.mkdir(parents=True, exist_ok=True)
        self.trainings, self.answers = (Lines(self.out / f"{name}.jsonl") for name in ("trainings", "answers"))
        self.code, self.dropped = source_digest("src"), list[str]()

    @property
    def cases(self) -> list[Case]:
        return [case for group in self.groups.values() for case in group]

    def carry_out(self, jobs: Iterable[Job], lines: Lines) -> None:
        carry_out(jobs, lines, self.options.jobs, self.options.again)

    def train(self, cases: list[Case], seeds: Sequence[int], with_base: bool) -> None:
        self.carry_out(costs.jobs(cases, self.out, seeds, with_base), self.trainings)

    def cost(self) -> str:
        """Train all; leave out faults that cost too little, and healthy runs that do not train well."""
        faults, healthy = ([case for case in self.cases if case.healthy == kind] for kind in (False, True))
        self.train(faults, range(self.options.cost_seeds), with_base=True)
        for case in healthy:
            self.train([case], [seed_of(case)], with_base=False)
        bad = dict(not_well(healthy, self.out, self.trainings))
        bad |= {case.name: "costs too little" for case in faults if not self.counts(case)}
        for name, group in self.groups.items():
            self.groups[name] = [case for case in group if case.name not in bad]
        self.dropped = [f"`{name}` ({why})" for name, why in bad.items()]
        table = costs.table(faults, self.out, self.trainings)
        (self.out / "costs.md").write_text(f"{table}\n")
        return f"{table}\n\nleft out: {', '.join(self.dropped) or 'none'}"

    def counts(self, case: Case) -> bool:
        return costs.cost(case, self.out, self.trainings)["counts"]

    def ask(self) -> dict[str, Line]:
        """What src.diagnose says of each case."""
        asked = (question(case, self.out, self.options.minutes, self.code) for case in self.cases)
        jobs = {job.about["case"]: replace(job, fresh=self.options.jobs == 1) for job in asked}
        self.carry_out(jobs.values(), self.answers)
        return {name: self.answers.known[job.key] for name, job in jobs.items()}

    def mend(self, said: dict[str, Line]) -> dict[str, list[report.Answer]]:
        """Apply each first change, and judge."""
        seeds = [utility.SEEDS[0] + n for n in range(self.options.seeds)]
        changes = ((case, said[case.name]) for case in self.cases)
        self.carry_out(utility.jobs(changes, self.out, seeds), self.trainings)
        self.train([c for c in self.cases if c.healthy and utility.change_of(said[c.name])], seeds, with_base=False)
        judged = {
            case.name: report.answer(case, said[case.name], self.out, self.trainings, seeds) for case in self.cases
        }
        return {name: [judged[case.name] for case in group] for name, group in self.groups.items()}

    def rules(self) -> str:
        cases = [case for case in self.cases if case.costs != "memory" and not BASES[case.base].is_module]
        self.carry_out([rules.job(case, self.out) for case in cases], self.answers)
        return rules.table(cases, self.out, self.answers)


def main(args: Sequence[str] | None = None) -> int:
    args = [str(arg) for arg in (sys.argv[1:] if args is None else args)]
    validation = Validation(options_of(args))
    preload()
    text = validation.cost()
    if not validation.options.costs:
        found = validation.mend(validation.ask())
        table = validation.rules() if validation.options.rules else ""
        again = shlex.join(["python", "-m", "benchmarks.diagnose", *args])
        text = report.page(found, validation.dropped, table, again, validation.options.cost_seeds)
        (validation.out / "page.md").write_text(text)
        report.draw(found, validation.out / "diagnose.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
