"""Settings tried one after the other, each against the best so far; what is measured is kept, so that a search that is
ended goes on where it was."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from src.config.request import Request, merge
from src.run.errors import EnvironmentFault, KnownError
from src.tuning.candidates import Overlay
from src.tuning.judge import PAIRS, is_settled, level
from src.tuning.trial import Lost, Trial

WARM, BLOCK_SEC = 4, 0.5  # steps that are slow; of a block, of which two are compared
SEEDS, CURVE_SEC = 4, 15.0  # of the short trainings that are compared: how many, and how long each may take
Found = dict[str, Any]


class Ledger:
    """What was measured, a line for each, on the disk at once.

    Args:
        key: what the figures hold for; with another one all is measured anew.
    """

    def __init__(self, path: Path, key: Found) -> None:
        self.path, self.found = path, dict[str, Found]()
        lines = path.read_text().splitlines() if path.is_file() else []
        self.is_other = bool(lines) and lines[0] != json.dumps(key, sort_keys=True)
        if self.is_other or not lines:
            path.write_text(json.dumps(key, sort_keys=True) + "\n")
        for line in [] if self.is_other else lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:  # of a process that was killed
                continue
            self.found[entry["what"]] = entry["found"]

    def once(self, what: Found, measure: Callable[[], Found]) -> Found:
        """What was measured before, or is now."""
        name = json.dumps(what, sort_keys=True)
        if name not in self.found:
            self.found[name] = measure()
            with open(self.path, "a") as file:
                file.write("\n" * self.is_torn() + json.dumps({"what": name, "found": self.found[name]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return self.found[name]

    def is_torn(self) -> bool:
        return not self.path.read_bytes().endswith(b"\n")


class Search:
    """Measures settings, which are overlays of the request's config.

    Args:
        folder: of the log of the trials.
        budget_sec: of all: no candidate begins when three quarters of it are over, and no answer may take a quarter.
        waiting: called a few times a second.
    """

    def __init__(
        self, request: Request, folder: Path, ledger: Ledger, budget_sec: float, waiting: Callable[[], None]
    ) -> None:
        self.request, self.log, self.ledger, self.waiting = request, folder / "trials.log", ledger, waiting
        self.limit_sec, self.t_late = max(budget_sec / 4, 60), time.monotonic() + 0.75 * budget_sec
        self.trials: dict[str, Trial] = {}
        self.facts: Found = {}

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def begin(self) -> None:
        """Measure the config as it is. Raises KnownError where it does not train."""
        self.facts = self.ledger.once({"facts": True}, self.begun)
        step_sec = self.facts["step_sec"]
        self.steps = round(min(max(CURVE_SEC / step_sec, 30), 100, max(self.facts["steps"], 12)))

    def begun(self) -> Found:
        t0 = time.monotonic()
        try:
            trial = self.trial({})
            start_sec, first = time.monotonic() - t0, trial.train(WARM)
            found = trial.train(round(min(max(WARM / first["sec"], 2), 100)), skipped=WARM)
        except Lost as e:
            raise known(e) from e
        trainer = self.request.config["trainer"]
        ends = (trainer.get("max_steps") or -1, (trainer.get("max_epochs") or -1) * trial.facts["steps_per_epoch"])
        step_sec, wait_frac = found["sec"] / len(found["losses"]), found["wait_sec"] / found["sec"]
        whole = {"steps": min((n for n in ends if n > 0), default=10**9), "start_sec": start_sec}
        return {**trial.facts, **whole, "step_sec": step_sec, "wait_frac": wait_frac}

    def expected_sec(self, number: int) -> float:
        """About how long so many candidates take: all are compared, and of two and the rate the losses."""
        f = self.facts
        compared = number * (f["start_sec"] + PAIRS * max(BLOCK_SEC, 2 * f["step_sec"]))  # the worse half ends early
        return compared + 4 * SEEDS * (f["start_sec"] + self.steps * f["step_sec"])

    def trial(self, overlay: Overlay, beside: Iterable[Overlay] = ()) -> Trial:
        """The trial with these settings, and no others but those `beside` it."""
        name, *others = (json.dumps(one, sort_keys=True) for one in (overlay, *beside))
        for other in [other for other in self.trials if other not in (name, *others)]:
            self.trials.pop(other).stop()
        if name not in self.trials or not self.trials[name].process.is_alive():
            self.trials[name] = Trial(self.request, overlay, self.log, self.limit_sec, self.waiting)
        return self.trials[name]

    def stop(self) -> None:
        for trial in self.trials.values():
            trial.stop()
        self.trials.clear()

    def compared(self, base: Overlay, other: Overlay, again: bool = False) -> Found:
        """How long blocks of steps take with the one and the other, in turn: A-B-B-A. Where memory is too short for
        both at once, each block is a process of its own."""

        def measure() -> Found:
            try:
                return self.in_turn(base, other, PAIRS, True)
            except Lost as e:
                if not e.found["memory"]:
                    return e.found
            try:
                return self.in_turn(base, other, PAIRS - 3, False)
            except Lost as e:
                return e.found

        return self.ledger.once(of_pair(base, other, again), measure)

    def knows(self, base: Overlay, other: Overlay) -> bool:
        return json.dumps(of_pair(base, other), sort_keys=True) in self.ledger.found

    def in_turn(self, base: Overlay, other: Overlay, pairs: int, at_once: bool) -> Found:
        sides = (base, other)
        beside = sides if at_once else ()
        first = [0.0, 0.0]
        times: tuple[list[float], list[float]] = ([], [])

        def block(side: int, steps: int = 0) -> float:
            trial = self.trial(sides[side], beside)
            first[side] = trial.warm_sec = trial.warm_sec or trial.train(WARM)["sec"]
            steps = steps or round(min(max(BLOCK_SEC / trial.train(WARM)["sec"] * WARM, 2), 500))
            workers = merge(self.request.config, sides[side])["data"]["init_args"].get("num_workers", 0)
            return trial.train(steps, skipped=2 * workers + 1)["sec"] / steps  # what waited there is gone

        steps = round(min(max(BLOCK_SEC / block(0), 2), 500))
        block(1, steps)

        for i in range(pairs):
            for side in (0, 1) if i % 2 == 0 else (1, 0):
                times[side].append(block(side, steps))
            ratios = [b / a for a, b in zip(*times, strict=True)]
            if is_settled(ratios):
                break
        medians = [statistics.median(side) for side in times]
        return {"ratios": ratios, "step_sec": medians, "first_sec": first, "at_once": at_once}

    def levels(self, overlay: Overlay) -> list[float]:
        """Where short trainings with these settings end, one for each seed, each a whole schedule."""
        return [level(self.curve(overlay, seed)) for seed in range(SEEDS)]

    def curve(self, overlay: Overlay, seed: int, span: tuple[float, float] | None = None) -> list[float]:
        """The loss of each step of a short training; as far as it came where its numbers are not finite any more.

        Args:
            span: of the rates of a range test, as multiples of the config's.
        """

        def measure() -> Found:
            self.stop()  # memory is for this one
            seeded = merge(overlay, {"seed_everything": seed})
            try:
                trial = Trial(self.request, seeded, self.log, self.limit_sec, self.waiting, self.steps, span)
                losses = trial.train(self.steps)["losses"]
                trial.stop()
            except Lost as e:
                return e.found
            return {"losses": losses}

        what = {"curve": overlay, "seed": seed, "steps": self.steps, "span": span}
        found = self.ledger.once(what, measure)
        return found["losses"] if len(found["losses"]) == self.steps or span else []


def of_pair(base: Overlay, other: Overlay, again: bool = False) -> Found:
    return {"base": base, "other": other, "again": again}


def known(e: Lost) -> KnownError:
    """What a run of this config would end with."""
    kinds = {kind.code: kind for kind in KnownError.__subclasses__() if "code" in vars(kind)}
    if e.found["memory"]:
        return EnvironmentFault(f"{e} -> python -m src.plan tells what fits")
    return kinds.get(e.found["code"], KnownError)(f"{e}")
