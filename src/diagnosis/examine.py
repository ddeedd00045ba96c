"""The examination: the config as it is, its data, changes that may help, and what is left of all that as findings."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from src.diagnosis.case import Case, total_steps
from src.diagnosis.checks import watches
from src.diagnosis.data import Data, examine, is_extreme
from src.diagnosis.finding import BADLY, SPACE, Finding, Unknown, ranked
from src.diagnosis.metric import judged_by, simple, wrong_mode
from src.diagnosis.probe import LIMIT_SEC, Observer, Probe, Runner, curves_of, run_trial
from src.diagnosis.rates import RangeTest, rate_suspects
from src.diagnosis.record import record
from src.diagnosis.space import plan_of, space
from src.diagnosis.speed import slow, slow_module
from src.diagnosis.subject import Subject, Trial, read_sec
from src.diagnosis.suspects import of_module, suspects, warms_up
from src.diagnosis.trials import Scale, Trials
from src.run.errors import EnvironmentFault, NumericsError
from src.run.files import write_text
from src.run.folder import RunFolder
from src.tuning.candidates import rates

WATCHED, WATCHED_SEC = 40, 15.0  # steps of the first training, and the most seconds it may take
RANGED, DATA_SEC = 100, 20.0  # steps of the range test; for the questions to the data
TIMED = 0.4  # of the time that is left: for what makes training slow
# No short trial can judge a record, or a leak that val has, too.
UNTRIED = ("overfits", "too_short", "target_leak", "monitor_mode")
FEW = 40  # steps of a trial: where a run has far more, they do not show that it is healthy
CURVE_SEC, BUDGET_SEC, FEWEST = 5.0, 120.0, 30  # of a training that is compared, of so many; its fewest steps
NOTHING, LEARNED = 0.97, 0.9  # of the trivial score: above it nothing was learned, below it something, beyond chance
NEEDED = ("structure", "training", "learning")  # what must have been examined, before a model is called healthy
WARM_TIMES = 4  # as many steps, where a warm-up takes longer
WORSE = 0.15  # of what a simple model learns: a network that lacks more is no better than that


@dataclass
class Diagnosis:
    verdict: str = "healthy"  # or findings, or unknown
    findings: list[Finding] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    trainings: int = 0

    def plain(self) -> dict[str, Any]:
        return asdict(self)


class Examination:
    """Args:
    folder: of the log, and files that changes name.
    past: a run, whose record is read, too.
    budget_sec: for all of it.
    told: gets what is done next, for a progress bar.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        budget_sec: float,
        told: Callable[[str], Any] = str,
        past: RunFolder | None = None,
    ) -> None:
        self.subject, self.folder, self.told, self.past = subject, folder, told, past
        self.until, self.budget_sec = time.monotonic() + budget_sec, budget_sec
        self.runner = Runner(subject, folder / "probes.log", self.until)
        self.result = Diagnosis()
        self.trials, self.total = Trials(self.runner, Scale(), FEWEST, told=told), math.inf

    def run(self) -> Diagnosis:
        self.told("data and memory")
        request = getattr(self.subject, "request", None)
        jobs: list[Any] = [(plan_of, (request,)), (ask, (self.subject, DATA_SEC))] if request else []
        *plans, data = self.runner.all(jobs or [(read_sec, (self.subject,))], LIMIT_SEC)
        if not request:
            self.subject.sample_sec = data if isinstance(data, float) else 0.0
        for plan in plans:
            self.note(*space(plan))
        if self.result.findings:  # what does not fit cannot be trained
            self.result.findings, self.result.verdict = ranked(self.result.findings), "findings"
            return self.result
        self.told("the first steps, and rates")
        first, rates = self.looked()
        self.result.unknown += first.unknown
        self.result.measured |= first.measured.get("structure") or {}
        if first.failed and not first.losses and first.code != NumericsError.code:
            return self.broken(first)
        self.result.measured |= rates.measured if isinstance(rates, Probe) else {}
        if not request:  # whether targets are classes only the loss says
            loss = self.result.measured.get("loss", "")
            (data,) = self.runner.all([(ask, (self.subject, DATA_SEC, loss))], LIMIT_SEC)
        self.note(*self.of_data(data))
        if math.isnan(self.result.measured.get("plain_loss", 0.0)) and not request:  # of other targets, or weighed ones
            found = self.result.findings
            self.result.findings = [one for one in found if one.check not in ("imbalance", "wrong_loss")]
        if self.past:
            self.note(*record(self.past), [])
        case = self.case(first)
        self.time_changes()
        self.try_changes(case)
        self.result.trainings = self.runner.count
        self.settle(case)
        return self.result

    def looked(self) -> tuple[Probe, Any]:
        """The first training, watched, and a range test."""
        one = self.runner.one_thread
        watched = run_trial, (self.subject, Trial(steps=WATCHED, untrained=True), watches, WATCHED_SEC, one)
        ranged = run_trial, (self.subject, Trial(steps=RANGED, validations=0), range_test, WATCHED_SEC, one)
        first, rates = self.runner.all([watched, ranged], LIMIT_SEC)
        first = first if isinstance(first, Probe) else Probe(**first)
        if first.failed and first.code not in (0, EnvironmentFault.code, NumericsError.code):  # is it the watches?
            plain = self.runner.run([Trial(steps=WATCHED)], most_sec=WATCHED_SEC)[0]
            first = first if plain.failed else replace(plain, unknown=[("structure", first.failed)])
        return first, rates

    def note(self, findings: Sequence[Finding], measured: dict[str, Any], unknown: Sequence[Unknown]) -> None:
        self.result.findings += findings
        self.result.measured |= measured
        self.result.unknown += unknown

    def of_data(self, data: Any) -> tuple[list[Finding], dict[str, Any], list[Unknown]]:
        if isinstance(data, dict):  # it has failed
            return [], {}, [("data", data["failed"])]
        return [self.with_file(one) for one in data.findings], data.measured, data.unknown

    def try_changes(self, case: Case) -> None:
        """What a short trial can judge is tried; a run's record speaks for itself."""
        self.told("the config as it is")
        self.trials, self.total = Trials(self.runner, case.scale, case.steps, case.total, self.told), case.total
        self.trials.run([{}], [0])
        rate = (self.result.measured.get("rates") or {}).get("config", 0.0)
        if (first := self.trials.probe({}, 0)) and case.steps < case.total and warms_up(first, rate):
            self.trials.steps = round(min(WARM_TIMES * case.steps, case.total))  # what it learns then tells nothing
            case.steps, self.trials.done = self.trials.steps, {}
            self.trials.run([{}], [0])
        case.base = [probe for probe in [self.trials.probe({}, 0)] if probe]
        case.first.findings += self.lost_later(case)
        if not case.judged:
            why = "several optimizers, and no val_loss: name what is meant to improve, as ModelCheckpoint's monitor"
            self.result.findings += [one for one in case.first.findings if one.certain]
            self.result.unknown.append(("learning", why))
            return
        seen = [*case.first.findings, *(one for one in self.result.findings if one.question == BADLY)]
        tried = [one for one in seen if one.change and one.check not in UNTRIED] + self.suspects(case)
        plain = [one for one in self.result.findings + case.first.findings if one not in tried]
        began, count = time.monotonic(), self.runner.count
        kept, late = self.trials.judge(tried), self.trials.late
        if not kept:
            each_sec = (time.monotonic() - began) / max(self.runner.count - count, 1)
            kept, self.trials = self.trials.again(tried, self.until - time.monotonic(), each_sec)
            case.base += [probe for probe in [self.trials.probe({}, 0)] if probe and probe not in case.base]
        self.result.findings = plain + kept
        self.result.measured["trials"] = self.trials.log
        self.result.measured["judged_by"] = case.scale.metric or "the losses of training"
        if late:
            self.result.unknown.append(("trials", f"no time was left to try {', '.join(sorted({*late}))}"))
        if case.base and "curves" not in self.result.measured:
            self.result.measured["curves"] = curves_of(case.base[0], case.scale.metric)

    def lost_later(self, case: Case) -> list[Finding]:
        """Where numbers cease to be finite after the steps that were watched, what they come from."""
        lost = [probe for probe in case.base if len(probe.losses) > WATCHED and not math.isfinite(sum(probe.losses))]
        if not lost or any(one.check == "not_finite" for one in case.first.findings):
            return []
        (again,) = self.runner.run([replace(self.trials.trial({}, 0), validations=0)], watches, 2 * WATCHED_SEC)
        return [one for one in again.findings if one.check == "not_finite"]

    def time_changes(self) -> None:
        """First, because what makes steps slow makes trials slow, too."""
        if request := getattr(self.subject, "request", None):
            self.told("the time of a step")
            left = self.until - time.monotonic()
            self.note(*slow(request, self.runner, self.folder, TIMED * left))
        else:
            self.note(*slow_module(self.subject, self.runner))

    def with_file(self, one: Finding) -> Finding:
        """Samples that are suspicious go into a file, which the change names."""
        samples = one.evidence.get("suspicious")
        if not samples or "data" not in self.subject.config:
            return one
        file = self.folder / f"{one.check}.txt"
        write_text(file, "".join([f"# {one.text}\n", *(f"{index}\n" for index in samples)]))
        return replace(one, change={"data": {"init_args": {"without": str(file)}}})

    def broken(self, first: Probe) -> Diagnosis:
        """It cannot be trained at all; or nobody knows, because it took too long."""
        if first.code == EnvironmentFault.code and not first.memory:
            self.result.unknown.append(("training", first.failed))
            self.result.verdict = "unknown"
            return self.result
        check, question = ("out_of_memory", SPACE) if first.memory else ("does_not_train", BADLY)
        what, _, todo = first.failed.partition(" -> ")
        found = Finding(check, question, what, {"exit_code": first.code}, 0.0, 1.0, todo=todo, certain=True)
        self.result.findings, self.result.verdict = [found], "findings"
        self.result.unknown = []  # for the same reason
        return self.result

    def case(self, first: Probe) -> Case:
        config, step_sec = self.subject.config, sorted(first.step_sec)[len(first.step_sec) // 2 :][:1]
        total = total_steps(config, first)
        curve_sec = CURVE_SEC * max(1.0, self.budget_sec / BUDGET_SEC)
        steps = round(min(max(curve_sec / (step_sec[0] if step_sec else 0.01), FEWEST), total, 100_000))
        own = getattr(self.subject, "trainer", {}).get("callbacks") or []
        self.result.findings += wrong_mode(config)
        judged = judged_by(config, first, own if isinstance(own, list) else [own])
        scale = Scale(*judged or ("", "min"))
        scale.trivial, scale.known = simple(config, scale, first, self.result.measured)
        return Case(config, first, steps, total, measured=self.result.measured, scale=scale, judged=judged is not None)

    def suspects(self, case: Case) -> list[Finding]:
        test = case.measured.get("rates") or {}
        if "model" not in case.config:
            return of_module(case, test)
        return [*rate_suspects(case.config, rates(self.subject.request), test), *suspects(case)]  # type: ignore[attr-defined]

    def settle(self, case: Case) -> None:
        """The verdict: what has learned nothing, or less than a simple model, is not healthy, whatever was found."""
        scale, ends = case.scale, [case.scale.score(probe) for probe in case.base]
        score, best = min(ends, default=math.inf), min(map(scale.score, self.trials.done.values()), default=math.inf)
        poor = math.isinf(score) or score >= scale.trivial - (1 - NOTHING) * abs(scale.trivial)
        poor = poor and case.judged
        worse = (case.whole or case.still) and score > scale.known + WORSE * (scale.trivial - scale.known)
        learned = scale.trivial - (1 - LEARNED) * abs(scale.trivial)
        found, of = self.result.findings, {"target_scale": score}  # a rate that suits such targets mends nothing
        self.result.findings = ranked([o for o in found if of.get(o.check, best) >= learned or not self.is_doubtful(o)])
        if failed := case.base[0].failed if case.base else "":
            self.result.unknown.append(("training", failed))
        elif (poor or worse) and not self.result.findings:
            against = f"without training, or by one answer for all, it is {scale.trivial:.4g}"
            against += f", of a simple model {scale.known:.4g}" * math.isfinite(scale.known)
            self.result.unknown.append(("learning", f"the score is {score:.4g}; {against}"))
        if not self.result.findings and self.trials.steps < min(FEW, self.total / 8):
            self.result.unknown.append(("trials", f"no time was left for more than {self.trials.steps} steps"))
        left = any("no time was left" in why or check in NEEDED for check, why in self.result.unknown)
        self.result.verdict = "findings" if self.result.findings else "unknown" if poor or worse or left else "healthy"

    def is_doubtful(self, one: Finding) -> bool:
        """What simple models have found in the data, where the network learns all the same."""
        got = self.result.measured.get("received", one.evidence)  # by the first layer with weights
        if one.check == "input_scale" and not one.tried:
            return not (one.certain and got and is_extreme(**got))
        return one.check in ("labels_independent", "target_scale")


def range_test() -> list[Observer]:
    return [RangeTest(RANGED)]


def ask(subject: Subject, budget_sec: float, loss: str = "") -> Data:
    """The questions to the data, in a process of their own."""
    data = subject.data()
    nothing = Data([], [("data", "samples and targets cannot be told apart")], {})
    return examine(data, budget_sec, loss) if data else nothing
