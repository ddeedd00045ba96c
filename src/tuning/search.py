"""Measures settings; what is measured is on the disk at once, so that a search that is ended goes on where it was."""

import copy
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from src.config.request import Request, merge
from src.run.errors import EnvironmentFault, KnownError
from src.tuning.candidates import takes
from src.tuning.judge import is_settled
from src.tuning.trial import Found, Lost, Trial

WARM, BLOCK_SEC = 4, 0.5  # steps that are slow; of a block, of which two are compared
# Of blocks that are compared: of one change, of all together, and of processes that cannot be there at once.
PAIRS, PAIRS_AT_LAST, PAIRS_ALONE = 11, 20, 5
SEEDS = (4, 8)  # of the short trainings that are compared: as many, then more if these do not tell
CURVE_SEC = 15.0  # which one of these may take
# Facts that figures hold for; the last is the data's.
MACHINE = ("text", "threads", "omp", "cpus", "on_device", "content")
Overlay = dict[str, Any]


class Late(Exception):
    """The time is over."""


class Journal:
    """What was measured, a line for each.

    Args:
        key: what the figures hold for; with another one all is measured anew.
    """

    def __init__(self, path: Path, key: Found) -> None:
        self.path, self.found = path, dict[str, Found]()
        head, *lines = path.read_text().splitlines(keepends=True) if path.is_file() else [""]
        now = name_of(key) + "\n"
        self.is_other = head not in ("", now)
        whole = [line for line in lines if head == now and line.endswith("\n")]  # not of a process that was killed
        path.write_text("".join([now, *whole]))
        for entry in map(json.loads, whole):
            self.found[entry["what"]] = entry["found"]

    def once(self, what: Found, measure: Callable[[], Found]) -> Found:
        """What was measured before, or is now. What other work on the machine may have done, such as a lack of memory,
        a signal or an answer that took too long, holds for this process only."""
        name = name_of(what)
        if name not in self.found:
            found = self.found[name] = measure()
            if found.get("memory") or found.get("code") == EnvironmentFault.code:
                return found
            with open(self.path, "a") as file:
                file.write(json.dumps({"what": name, "found": found}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return self.found[name]


def name_of(what: Any) -> str:
    return json.dumps(what, sort_keys=True)


def steps_in(sec: float, step_sec: float, least: int, most: int) -> int:
    return round(min(max(sec / step_sec, least), most))


class Search:
    """Measures settings, which are overlays of the request's config. Raises Late where that is not done in time.

    Args:
        folder: of the journal, and the log of the trials.
        holds: what the figures hold for, beside the facts of the machine and the data.
        budget_sec: of all but the start of the first trial, which may have to prepare the data; no later answer may
            take a quarter of it.
        waiting: called a few times a second.
    """

    def __init__(
        self, request: Request, folder: Path, holds: Found, budget_sec: float, waiting: Callable[[], None]
    ) -> None:
        self.request, self.folder, self.holds, self.waiting = request, folder, holds, waiting
        self.budget_sec, self.limit_sec, self.until, self.t_begin = budget_sec, math.inf, math.inf, 0.0
        self.seeds, self.trials = SEEDS, dict[str, Trial]()
        self.on_device: bool | None = None

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, *_: Any) -> None:
        for trial in self.trials.values():
            trial.child.stop()
        self.trials.clear()

    def begin(self) -> None:
        """Measure the config as it is. Raises KnownError where it does not train."""
        try:
            t0 = time.monotonic()
            trial = self.trial({})
            self.t_begin = time.monotonic()
            trial.limit_sec = self.limit_sec = max(self.budget_sec / 4, 60)
            self.holds = {**self.holds, **{name: trial.facts[name] for name in MACHINE}}
            self.journal = Journal(self.folder / "trials.jsonl", self.holds)
            start_sec = self.t_begin - t0 - trial.facts["prepare_sec"]
            self.facts = self.journal.once({"facts": True}, lambda: self.begun(trial, start_sec))
        except Lost as e:
            raise known(e) from e
        self.steps = min(steps_in(CURVE_SEC, self.facts["step_sec"], 30, 100), max(self.facts["steps"], 6))
        again = 2 * self.facts["start_sec"] + 2.5 * PAIRS_AT_LAST * max(BLOCK_SEC, 2 * self.facts["step_sec"])
        self.reserve = min(again / self.budget_sec, 0.5)

    def begun(self, trial: Trial, start_sec: float) -> Found:
        first = trial.train(WARM)["sec"]
        found = trial.train(steps_in(1, first / WARM, 2, 100), skipped=WARM)
        given = self.request.config["trainer"]
        ends = (given.get("max_steps") or -1, (given.get("max_epochs") or -1) * trial.facts["steps_per_epoch"])
        measured = {"step_sec": found["sec"] / len(found["losses"]), "wait_frac": found["wait_sec"] / found["sec"]}
        whole = {"steps": min((n for n in ends if n > 0), default=10**9), "start_sec": start_sec}
        return {**trial.facts, **measured, **whole}

    def allow(self, share: float) -> None:
        """What is measured from now on must end by this share of the time."""
        self.until = self.t_begin + share * self.budget_sec

    def tick(self) -> None:
        self.waiting()
        if time.monotonic() > self.until:
            raise Late

    def trial(self, overlay: Overlay, beside: Iterable[Overlay] = ()) -> Trial:
        """The trial with these settings; all others are ended but those `beside` it."""
        name, *others = map(name_of, (overlay, *beside))
        for other in [other for other in self.trials if other not in (name, *others)]:
            self.trials.pop(other).child.stop()
        if name not in self.trials or not self.trials[name].child.process.is_alive():
            self.trials[name] = self.started(overlay)
        return self.trials[name]

    def started(self, overlay: Overlay, *how: Any) -> Trial:
        """Where `data.on_device` is auto, all have the data where the first one without workers had: that looks for
        free memory, which the other of a pair has taken."""
        is_free = self.workers(overlay) == 0 and "on_device" in takes(self.request.config["data"])
        if is_free and self.on_device is not None:
            overlay = merge(copy.deepcopy(overlay), {"data": {"init_args": {"on_device": self.on_device}}})
        trial = Trial(self.request, overlay, self.folder / "trials.log", self.limit_sec, self.tick, *how)
        if is_free:
            self.on_device = trial.facts["on_device"]
        return trial

    def workers(self, overlay: Overlay) -> int:
        return merge(self.request.config, overlay)["data"]["init_args"].get("num_workers", 0)

    def compared(self, base: Overlay, other: Overlay, again: bool = False) -> Found:
        """How long blocks of steps take with the one and the other, in turn: A-B-B-A. Where memory is too short for
        both at once, each block is a process of its own."""

        def measure(at_once: bool = True) -> Found:
            pairs = PAIRS_AT_LAST if again else PAIRS
            try:
                return self.in_turn(base, other, pairs if at_once else PAIRS_ALONE, at_once)
            except Lost as e:
                return measure(False) if e.found["memory"] and at_once else e.found

        return self.journal.once(pair(base, other, again), measure)

    def in_turn(self, base: Overlay, other: Overlay, pairs: int, at_once: bool) -> Found:
        sides, first = (base, other), [0.0, 0.0]
        times: tuple[list[float], list[float]] = ([], [])
        ratios: list[float] = []

        def block(side: int, steps: int) -> float:
            """Seconds of a step; before them some steps, in which data that waited there is used up."""
            trial = self.trial(sides[side], sides if at_once else ())
            first[side] = trial.warm_sec = trial.warm_sec or trial.train(WARM)["sec"]
            return trial.train(steps, skipped=2 * self.workers(sides[side]) + 1)["sec"] / steps

        steps = steps_in(BLOCK_SEC, block(0, WARM), 2, 500)
        block(1, steps)
        while not is_settled(ratios, pairs):
            for side in (0, 1) if len(ratios) % 2 == 0 else (1, 0):
                times[side].append(block(side, steps))
            ratios = [b / a for a, b in zip(*times, strict=True)]
        step_sec = [statistics.median(side) for side in times]
        return {"ratios": ratios, "step_sec": step_sec, "first_sec": first, "at_once": at_once, "steps": steps}

    def curves(self, overlay: Overlay, seeds: int) -> list[list[float]]:
        """The losses of short trainings with these settings, one for each seed, each a whole schedule."""
        return [self.curve(overlay, seed) for seed in range(seeds)]

    def curve(self, overlay: Overlay, seed: int, rates: Sequence[float] = ()) -> list[float]:
        """The loss of each step of a short training; of one that fails none, but those so far of a range test.

        Args:
            rates: of the steps of a range test, as multiples of the config's.
        """

        def measure() -> Found:
            self.__exit__()  # memory is for this one
            try:
                trial = self.started(merge(copy.deepcopy(overlay), {"seed_everything": seed}), self.steps, rates)
                losses = trial.train(self.steps)["losses"]
            except Lost as e:
                return {**e.found, "losses": e.found["losses"] if rates else []}
            trial.child.stop()
            return {"losses": losses}

        what = {"curve": overlay, "seed": seed, "steps": self.steps, "rates": list(rates)}
        return self.journal.once(what, measure)["losses"]


def pair(base: Overlay, other: Overlay, again: bool) -> Found:
    return {"base": base, "other": other, "again": again}


def known(e: Lost) -> KnownError:
    """What a run of this config would end with."""
    kinds = {kind.code: kind for kind in KnownError.__subclasses__() if "code" in vars(kind)}
    return kinds.get(e.found["code"], KnownError)(str(e))
