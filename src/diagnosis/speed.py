"""Why training is slow: some steps by part, and what there is a reason to change, timed in turn with the config as it
is. Validation and checkpoints are counted for a whole run."""

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter as clock
from typing import Any

import torch
from lightning.pytorch import Trainer

from src.config.planned import of_micro, of_model
from src.config.request import Request
from src.diagnosis.finding import SLOW, Finding, Overlay, Unknown
from src.diagnosis.probe import WARM, Lab, Watch
from src.diagnosis.subject import VAL_SAMPLES, Short
from src.run.device import has_bfloat16
from src.run.errors import KnownError
from src.run.ledger import LEDGER
from src.tuning.judge import is_faster
from src.tuning.search import Late, Search

LEAST, WAITS, TRANSFORMS = 0.2, 0.1, 0.5  # of the time: what wins back less is no fault; for data that are suspect
MOST, AFTER, FEWEST = 0.25, 0.05, 5  # of a run, beside training; what it is brought to; validations that a run keeps
STEPS, WATCHED_SEC, STARTS_SEC = 400, 4.0, 6.0  # that are watched, at most; of a run around training, about
DEAR = {"profiler": None, "detect_anomaly": False, "deterministic": False}
BY_WATCHING = ("slow_callback", "logs_too_often")  # which `tune` leaves out
Suspect = tuple[str, str, list[Overlay]]  # check, what is wrong, changes of which one is to mend it
Seen = dict[str, Any]


class Clock(Watch):
    """Seconds of the steps after the first ones by part, of the validation after them, and of a checkpoint."""

    begun, first = dict[str, float](), 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= WARM and not self.begun:
            self.begun, self.first = LEDGER.so_far(), trainer.global_step

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self.parts = {name: sec - self.begun.get(name, 0.0) for name, sec in LEDGER.so_far().items()}
        self.steps, self.t0 = max(trainer.global_step - self.first, 1), clock()

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.t1 = clock()
        with TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder, "step-0.ckpt"), storage_options=1)
            getattr(trainer.strategy.checkpoint_io, "finish", int)()
        self.t2 = clock()

    def measured(self) -> Seen:
        total = sum(self.parts.values())
        share = {name: sec / total for name, sec in self.parts.items()}.get
        data = [x for x, least in ((share("data_wait", 0), WAITS), (share("transform", 0), TRANSFORMS)) if x > least]
        numbers = {"parts": self.parts, "steps": self.steps, "step_sec": total / self.steps, "data": sum(data)}
        return numbers | {"hooks": share("callbacks", 0), "validation": self.t1 - self.t0, "save": self.t2 - self.t1}


def watched(lab: Lab, overlay: Overlay) -> Seen:
    probe = lab.run([Short(overlay, STEPS)], lambda: [Clock()], WATCHED_SEC)[0]
    if probe.failed or "Clock" not in probe.measured:
        raise KnownError(probe.failed or "training ended within its first steps")
    return probe.extra | probe.measured["Clock"]


def slow(request: Request, lab: Lab, folder: Path, budget_sec: float) -> tuple[list[Finding], Seen, list[Unknown]]:
    """What makes training slow; `ledger` has the seconds of a whole run by part, and `folder` gets a log of timings."""
    found, measured, unknown = list[Finding](), Seen(), list[Unknown]()
    try:
        seen = watched(lab, {})
        ledger, *counts = whole_run(request.config, seen)
        measured = {"ledger": ledger, "step_sec": seen["step_sec"]}
        found += overheads(ledger, request.config, *counts)
        suspects = suspected(request.config, seen)
        with Search(request, folder, {}, budget_sec, lab.waiting) as search:
            if any(check not in BY_WATCHING for check, _, _ in suspects):
                search.begin()
                search.allow(1.0)
            for check, text, changes in suspects:
                ratios, numbers = (
                    [compared(search, lab, seen, check, c) for c in changes],
                    {"step_sec": seen["step_sec"]},
                )
                if (ratio := min(ratios)) < 1 - LEAST:
                    numbers, change = numbers | {"time_ratio": ratio}, changes[ratios.index(ratio)]
                    found.append(Finding(check, SLOW, text, numbers, 1 - ratio, 0.9, change, tried=True))
                elif check == "data_bound" and seen["data"] > LEAST and seen["device"] == "cpu":
                    todo = "no number of workers mends it: make it cheaper in the data module"
                    found.append(Finding(check, SLOW, text, numbers, seen["data"], 0.7, todo=todo))
    except (Late, KnownError) as e:
        unknown.append(("speed", str(e) or "no time was left to time all changes"))
    return found, measured, unknown


def compared(search: Search, lab: Lab, seen: Seen, check: str, change: Overlay) -> float:
    """The time with the change over that without; infinite where it fails, or is not clearly faster."""
    if check in BY_WATCHING:
        return watched(lab, change)["step_sec"] / seen["step_sec"]
    if not (ratios := (found := search.compared({}, change)).get("ratios")):
        return math.inf
    if check == "compile":  # its start counts
        (a, b), (c, d), steps = found["first_sec"], found["step_sec"], search.facts["steps"]
        return (b + steps * d) / (a + steps * c)
    return statistics.median(ratios) if is_faster(ratios) else math.inf


def whole_run(config: Overlay, seen: Seen) -> tuple[dict[str, float], float, float]:
    """Of a run: seconds by part, micro-batches, validations."""
    trainer, per_epoch, saves = config["trainer"], seen["steps_per_epoch"], config["checkpoints"].get("every_n_steps")
    ends = (trainer.get("max_steps") or -1, (trainer.get("max_epochs") or -1) * per_epoch)
    steps, each = min((n for n in ends if n > 0), default=10**6), seen["batch_size"] / seen["micro_batch_size"]
    interval, every = trainer.get("val_check_interval") or 1.0, trainer.get("check_val_every_n_epoch", 1) or 1
    validations = steps * each / every / (interval if type(interval) is int else interval * per_epoch * each)
    ledger = {part: sec * steps / seen["steps"] for part, sec in seen["parts"].items()} | {"start": STARTS_SEC}
    whole = max(seen["num_samples"]["val"] / VAL_SAMPLES, 1)
    ledger |= {"validation": validations * whole * seen["validation"]}
    return ledger | {"checkpoints": seen["save"] * (steps / saves if saves else 1)}, steps * each, validations


def overheads(ledger: dict[str, float], config: Overlay, batches: float, validations: float) -> Iterator[Finding]:
    """What takes more than a quarter of a run; how seldom takes a twentieth. The best is saved after a validation."""
    saves = config["checkpoints"].get("every_n_steps")
    for part in ("validation", "checkpoints"):
        if (share := ledger.get(part, 0.0) / max(sum(ledger.values()), 1e-9)) <= MOST:
            continue
        times = share * (1 - AFTER) / (1 - share) / AFTER
        kept = max(validations / times, min(FEWEST, validations), 1)
        how: Overlay = {"val_check_interval": max(1, round(batches / kept)), "check_val_every_n_epoch": None}
        if times > 1.2 * validations / kept:
            how["limit_val_batches"] = float(f"{validations / kept / times:.2g}")
        rarely = {"checkpoints": {"every_n_steps": math.ceil((saves or 1) * times)}}
        change = rarely if part == "checkpoints" and saves else {"trainer": how}
        text, numbers = f"{share:.0%} of a run goes for {part}", {"share": share, "seconds": ledger[part]}
        yield Finding(f"{part}_too_often", SLOW, text, numbers, share - AFTER, 0.9, change)


def suspected(config: Overlay, seen: Seen) -> list[Suspect]:
    """What there is a reason to time, by the config and the parts of a step."""
    trainer, model, workers = (
        config["trainer"],
        config["model"]["init_args"],
        config["data"]["init_args"].get("num_workers", 0),
    )
    kind, precision, batch, micro = (seen[n] for n in ("device", "precision", "batch_size", "micro_batch_size"))
    half = "bf16-mixed" if "16" not in precision and has_bfloat16(torch.device(kind)) else precision
    best = {"cpu": "32-true", "cuda": half}.get(kind, precision)
    given, logs, hooks = trainer.get("callbacks") or [], trainer.get("log_every_n_steps", 50), seen["hooks"] > LEAST
    others = [{"data": {"init_args": {"num_workers": n}}} for n in (0, 2, 4) if n != workers]
    rows: list[tuple[Any, str, str, list[Overlay]]] = [
        *((trainer.get(n), n, f"trainer.{n} is on", [{"trainer": {n: off}}]) for n, off in DEAR.items()),
        *((model.get(n), n, f"model.{n} is on, and does not pay here", [of_model(**{n: False})])
          for n in ("activation_checkpointing", "compile")),
        (config.get("threads"), "threads", f"torch has {config.get('threads')} threads", [{"threads": None}]),
        (precision != best, "precision", f"precision is {precision}", [{"trainer": {"precision": best}}]),
        (4 * micro <= batch, "micro_batch_too_small", f"a step is {batch // micro} micro-batches", [of_micro(batch)]),
        (workers or seen["data"], "data_bound", f"data take {seen['data']:.0%} of a step, with {workers} workers", others),
        (hooks and logs < 10, BY_WATCHING[1], f"each {logs} steps there is a log, and what it measures",
         [{"trainer": {"log_every_n_steps": 50}}]),
        *((hooks, BY_WATCHING[0], f"the callback {one['class_path'].rpartition('.')[2]} is slow",
           [{"trainer": {"callbacks": [other for other in given if other is not one]}}]) for one in given),
    ]  # fmt: skip
    return [(check, text, changes) for reason, check, text, changes in rows if reason]
