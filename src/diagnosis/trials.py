"""Paired short trainings: whether a change of the config wins back what the config as it is leaves."""

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from src.config.request import merge
from src.diagnosis.finding import REASON, Finding, Overlay
from src.diagnosis.probe import NO_TIME, Probe, Runner
from src.diagnosis.subject import Trial
from src.tuning.judge import bounds, level
from src.tuning.search import name_of

SEEDS = range(1, 4)  # by which changes are judged; seed 0 has only chosen which
CHOOSE, MORE = (0,), range(4, 8)  # where those that judge do not tell
LEAST = 0.08  # of what can be learned: a change that wins back less is not told
LEAST_OF = {"too_short": 0.2, "batches_too_large": 0.04}  # longer nearly always helps; few steps an epoch are odd
LEAST_OF |= {"lr_too_low": 0.12, "imbalance": 0.03}  # short trainings like high rates; of F1
MUCH = 0.6  # which a longer training would hardly make nothing
LONGER, MOST_LONGER, FEW_STEPS = 3, 4.0, 400  # times as many steps; a trial of so few takes no time
VALIDATIONS = 8
OF_LABELS = ("label_noise", "conflicting_labels")
WALK = ("lr_too_low", "lr_too_high")  # changes that go on in the direction that helps
MOST_WALKED = 2
HINT, MOST_NEAR, AGAIN = 0.02, 2, 2.0  # a gain that may grow; so many are tried again, where a run is that much longer


@dataclass
class Scale:
    """What a score is measured by.

    Args:
        metric: that is logged by a validation; empty: the losses of training.
        mode: whether the least or the greatest is best.
        trivial: the score of one answer for all samples; NaN where that is not known.
        known: the score of a simple model, such as a linear one; NaN likewise.
    """

    metric: str = ""
    mode: str = "min"
    trivial: float = math.nan
    known: float = math.nan

    def score(self, probe: Probe, metric: str = "") -> float:
        """Of a training, the less the better; infinite of one that failed or never gave a number."""
        if probe.failed:
            return math.inf
        name, sign = metric or self.metric, -1 if metric or self.mode == "max" else 1
        found = [sign * one[name] for one in probe.scores if math.isfinite(one.get(name, math.nan))]
        means = [statistics.fmean(pair) for pair in pairwise(found)] or found  # a single one is luck where val is small
        return min(means, default=math.inf) if probe.scores and name else level(probe.losses)

    def gain(self, before: float, after: float) -> float:
        """Which share of what can be won a change wins back, below 0 where it loses."""
        if not math.isfinite(after):
            return -1.0
        worst = max(before, after) if math.isfinite(before) else after + 1
        start = self.trivial if math.isfinite(self.trivial) else worst
        best = min(x for x in (before, after, self.known) if not math.isnan(x))
        whole = max(start - best, abs(start) / 20, 1e-12)
        return max(min((min(before, start) - min(after, start)) / whole, 1.0), -1.0)


@dataclass
class Trials:
    """Tries changes.

    Args:
        steps: of each training; `total`: of a whole run.
        told: gets the name of what is tried.
    """

    runner: Runner
    scale: Scale
    steps: int
    total: float = math.inf
    told: Callable[[str], Any] = str
    seeds: Sequence[int] = SEEDS
    more: Sequence[int] = MORE
    done: dict[str, Probe] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)  # for the report
    late: list[str] = field(default_factory=list)  # checks for whose changes there was no time

    def trial(self, overlay: Overlay, seed: int) -> Trial:
        times = min(longer(self.runner.subject.config, overlay), max(MOST_LONGER, FEW_STEPS / self.steps))
        return Trial(overlay, round(self.steps * times), seed, VALIDATIONS)

    def run(self, overlays: Sequence[Overlay], seeds: Sequence[int]) -> None:
        """Those that have not been run."""
        wanted = {name_of([seed, overlay]): self.trial(overlay, seed) for overlay in overlays for seed in seeds}
        new = {name: trial for name, trial in wanted.items() if name not in self.done}
        for name, probe in zip(new, self.runner.run(list(new.values())), strict=True):
            if probe.failed != NO_TIME:
                self.done[name] = probe

    def probe(self, overlay: Overlay, seed: int) -> Probe | None:
        return self.done.get(name_of([seed, overlay]))

    def gains(self, base: Overlay, overlay: Overlay, metric: str, seeds: Sequence[int]) -> list[float]:
        """By seed, of those that were run."""
        pairs = [(self.probe(base, seed), self.probe(overlay, seed)) for seed in seeds]
        scale = replace(self.scale, trivial=0.0, known=-1.0) if metric else replace(self.scale, known=self.best())
        whole = [(a, b) for a, b in pairs if a and b]
        return [scale.gain(scale.score(a, metric), scale.score(b, metric)) for a, b in whole]

    def best(self) -> float:
        """The best score that is known."""
        scores = [self.scale.known, *map(self.scale.score, self.done.values())]
        return min((score for score in scores if math.isfinite(score)), default=math.nan)

    def judge(self, suspects: Sequence[Finding]) -> list[Finding]:
        """Those that help beyond noise, with what they win back."""
        self.told(f"{len(suspects)} changes")
        self.late = []
        kept = self.lasting(self.confirmed(suspects))
        self.late += [one.check for one in suspects if not self.probe(one.change, 0)]
        # A limit of gradients hides a rate that is far too high.
        rate = max((one.gain for one in kept if one.check == "lr_too_high"), default=0.0) + LEAST
        kept = [one for one in kept if one.check != "gradients_explode" or one.gain > rate]
        return self.without_echoes(sorted(kept, key=lambda one: (not one.is_slip, -one.weight)))

    def confirmed(self, suspects: Sequence[Finding]) -> list[Finding]:
        """Those that help with the first seed, and beyond noise with others."""
        self.run([{}, *(one.change for one in suspects)], CHOOSE)
        likely = [one for one in suspects if one.certain or self.helps(one, {}, CHOOSE)]
        likely = [self.walked(one) for one in self.best_of_each(likely)]
        self.run([{}, *(one.change for one in likely)], self.seeds)
        return [judged for one in likely if (judged := self.judged(one))]

    def again(self, suspects: Sequence[Finding], left_sec: float, each_sec: float) -> tuple[list[Finding], "Trials"]:
        """Where none has helped enough in trainings far shorter than a run: those that came nearest in whole runs, if
        there is time; and these. What they find no time for is no news."""
        near = sorted(self.best_of_each([one for one in suspects if not one.certain]), key=self.first_gain)
        for some in ([one for one in near if self.first_gain(one) > HINT][-most:] for most in range(MOST_NEAR, 0, -1)):
            times = 0.8 * left_sec / each_sec / (1 + len(some)) / (1 + len(self.seeds))
            if some and AGAIN <= self.total / self.steps <= times:
                self.told("changes in whole runs")
                long = replace(self, steps=round(self.total), done={}, late=[], more=())
                kept = sorted(long.confirmed(some), key=lambda one: -one.weight)
                return long.without_echoes(kept), long if long.done else self
        return [], self

    def helps(self, one: Finding, base: Overlay, seeds: Sequence[int], part: float = 0.5) -> bool:
        """Whether it wins back part of what it must."""
        gains = self.gains(base, on_top(base, one.change), one.metric, seeds)
        return len(gains) == len(seeds) and statistics.fmean(gains) >= part * LEAST_OF.get(one.check, LEAST)

    def best_of_each(self, likely: Sequence[Finding]) -> list[Finding]:
        """Of the changes for one check that which wins back most with the first seed."""
        best: dict[str, Finding] = {}
        for one in likely:
            if one.check not in best or self.first_gain(one) > self.first_gain(best[one.check]):
                best[one.check] = one
        return [*best.values()]

    def first_gain(self, one: Finding) -> float:
        return next(iter(self.gains({}, one.change, one.metric, CHOOSE)), -1.0)

    def walked(self, one: Finding) -> Finding:
        """A rate that helps, moved on as long as that helps more."""
        if one.check not in WALK:
            return one
        for _ in range(MOST_WALKED):
            further = replace(one, change=scaled(one.change, 10 if one.check == "lr_too_low" else 0.1))
            self.run([further.change], CHOOSE)
            now, then = (self.gains({}, change, "", CHOOSE) for change in (one.change, further.change))
            if not then or then[0] <= now[0] + LEAST / 4:
                break
            one = further
        return one

    def judged(self, one: Finding) -> Finding | None:
        gains, least = self.gains({}, one.change, one.metric, self.seeds), LEAST_OF.get(one.check, LEAST)
        if len(gains) == len(self.seeds) and statistics.fmean(gains) >= least and not beyond_noise(gains) and self.more:
            self.run([{}, one.change], self.more)
            return replace(self, seeds=[*self.seeds, *self.more], more=()).judged(one)
        if len(gains) < len(self.seeds):
            self.late.append(one.check)
            return replace(one, gain=one.gain * 0.5) if one.certain else None
        pairs = [(self.probe({}, seed), self.probe(one.change, seed)) for seed in self.seeds]
        before, after = ([self.scale.score(p, one.metric) for p in side if p] for side in zip(*pairs, strict=True))
        self.log.append({"check": one.check, "change": one.change, "before": before, "after": after, "gains": gains})
        clear = (mean := statistics.fmean(gains)) >= least and beyond_noise(gains)
        if one.check in OF_LABELS and one.certain and mean <= -LEAST / 2:  # what val has, too, no trial refutes
            return replace(one, change={}, todo="correct them; without them a training is no better by such labels")
        if not clear and not (one.certain and mean > -LEAST / 2):
            return None
        numbers = {"before": rounded(before), "after": rounded(after), "seeds": len(gains)}
        gain = max(mean, 0.0) if clear else max(mean, one.gain * 0.5)
        sure = 0.95 if one.certain else 0.9 if one.confidence > REASON else 0.7
        return replace(one, gain=gain, confidence=sure, tried=True, evidence={**one.evidence, **numbers})

    def lasting(self, kept: Sequence[Finding]) -> list[Finding]:
        """Those that help in longer trainings, too: high rates and little regularisation are best at the beginning."""
        doubtful = [one for one in kept if not one.certain]
        long = replace(self, steps=round(min(LONGER * self.steps, self.total)), done={}, seeds=self.seeds[:1])
        if not doubtful or long.steps < 1.5 * self.steps:
            return [*kept]
        self.told("what helps in longer trainings")
        long.run([{}, *(one.change for one in doubtful)], long.seeds)
        unsure = [one for one in doubtful if not long.gains({}, one.change, one.metric, long.seeds)]  # no time was left
        lost = [one for one in doubtful if one not in unsure and not long.helps(one, {}, long.seeds, 1.0)]
        lost += [one for one in unsure if one.gain < MUCH]
        self.late += [one.check for one in unsure if one.gain < MUCH]
        return [replace(one, confidence=0.7) if one in unsure else one for one in kept if one not in lost]

    def without_echoes(self, kept: list[Finding]) -> list[Finding]:
        """Those that still help once the first is applied: others mend the same."""
        if len(kept) < 2:
            return kept
        first, *others = kept
        self.told("what is left with the first change")
        together = [on_top(first.change, one.change) for one in others]
        self.run([first.change, *together], self.seeds[:2])
        return [first, *(one for one in others if one.certain or self.helps(one, first.change, self.seeds[:2]))]


def beyond_noise(gains: Sequence[float]) -> bool:
    """Whether a mean of gains is above 0: by Student's t with 95 % confidence, or because all agree closely."""
    _, low, _ = bounds([[0.0]] * len(gains), [[g] for g in gains])
    return low > 0 or min(gains) > max(0.5 * statistics.fmean(gains), LEAST)


def longer(config: Overlay, overlay: Overlay) -> float:
    """How many times as many steps a run has with a change: of its end, or of the batch, where epochs end it."""
    trainer, changed = config.get("trainer") or {}, overlay.get("trainer") or {}
    names = [name for name in ("max_epochs", "max_steps") if changed.get(name) and trainer.get(name)]
    ends = [changed[name] / trainer[name] for name in names]
    size = (overlay.get("data") or {}).get("init_args", {}).get("batch_size")
    if size and (trainer.get("max_steps") or -1) < 0:
        ends.append(config["data"]["init_args"].get("batch_size", size) / size)
    return max(math.prod(ends), 0.1)


def on_top(base: Overlay, overlay: Overlay) -> Overlay:
    return merge(copy.deepcopy(base), overlay)


def scaled(change: Any, factor: float) -> Any:
    """The same change with its numbers multiplied."""
    if isinstance(change, dict):
        return {name: scaled(value, factor) for name, value in change.items()}
    return float(f"{change * factor:.3g}") if isinstance(change, float) else change


def rounded(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
