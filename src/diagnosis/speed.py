"""Why training is slow: some steps by part, then changes that there is a reason for, each timed in turn with the config
as it is. Validation and checkpoints are counted for a whole run."""

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter as clock
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from src.config.planned import of_micro, of_model
from src.config.request import Request
from src.diagnosis.finding import SLOW, Finding, Overlay, Unknown
from src.diagnosis.probe import WARM, Lab, Watch
from src.diagnosis.subject import Short
from src.run.device import has_bfloat16
from src.run.errors import KnownError
from src.run.ledger import LEDGER
from src.tuning.candidates import takes
from src.tuning.judge import is_faster
from src.tuning.search import Late, Search

LEAST, WAITS = 0.2, 0.1  # of the time: what wins back less is no fault; for data: with less no workers are tried
MOST, AFTER, FEWEST = 0.25, 0.05, 5  # of a run, beside training; what it is brought to; validations that a run keeps
STEPS, WATCHED_SEC, STARTS_SEC = 400, 4.0, 6.0  # that are watched, at most; of a run around training, about
BATCH, TIMES = 8, 8  # samples of a step that are few; how many more are timed
BY_WATCHING, BY_START = ("slow_callback", "logs_too_often"), ("compile",)  # which `tune` leaves out; whose start counts
Suspect = tuple[str, str, list[Overlay]]  # check, what is wrong, changes of which one is to mend it
Seen = dict[str, Any]


class Clock(Watch):
    """Seconds of the steps after the first ones by part, those of a whole validation, and those of a checkpoint."""

    name = "time"

    def __init__(self) -> None:
        self.begun, self.first, self.seen = dict[str, float](), 0, Seen()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= WARM and not self.begun:
            self.begun, self.first = LEDGER.so_far(), trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen["parts"] = {name: sec - self.begun.get(name, 0.0) for name, sec in LEDGER.so_far().items()}
        self.seen["steps"], self.t0 = trainer.global_step - self.first, clock()

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        t1, data = clock(), trainer.datamodule
        with TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder, "step-0.ckpt"), storage_options=1)
            getattr(trainer.strategy.checkpoint_io, "finish", int)()
            self.seen["checkpoint_sec"] = clock() - t1
        whole = data.num_samples["val"] / data.micro_batch_size / max(sum(map(int, trainer.num_val_batches)), 1)
        self.seen |= {
            "validation_sec": (t1 - self.t0) * max(whole, 1.0), "device": trainer.strategy.root_device,
            "batch_size": data.batch_size, "micro_batch_size": data.micro_batch_size,
            "steps_per_epoch": trainer.num_training_batches / trainer.accumulate_grad_batches,
            "precision": str(trainer.precision), "step_sec": sum(self.seen["parts"].values()) / self.seen["steps"],
        }  # fmt: skip

    def measured(self) -> Seen:
        return self.seen


def watched(request: Request, lab: Lab, overlay: Overlay) -> Seen:
    probe = lab.run([Short(overlay, STEPS)], lambda: [Clock()], WATCHED_SEC)[0]
    if probe.failed or "step_sec" not in probe.measured["time"]:
        raise KnownError(probe.failed or "training ended within its first steps")
    return probe.measured["time"]


def slow(
    request: Request, lab: Lab, folder: Path, budget_sec: float
) -> tuple[list[Finding], dict[str, Any], list[Unknown]]:
    """What makes training slow; `ledger` has the seconds of a whole run by part, and `folder` gets a log of timings."""
    found, measured, config = list[Finding](), dict[str, Any](), request.config
    try:
        seen = watched(request, lab, {})
        ledger, validations = whole_run(config, seen)
        measured |= {"ledger": ledger, "step_sec": seen["step_sec"]}
        found += overheads(ledger, config, validations)
        suspects = list(suspected(config, seen))
        with Search(request, folder, {}, budget_sec, lab.waiting) as search:
            if any(check not in BY_WATCHING for check, _, _ in suspects):
                search.begin()
                search.allow(1.0)
            for check, text, changes in suspects:
                found += judged(check, text, [(one, compared(search, lab, seen, check, one)) for one in changes])
        found += [] if any(one.check == "data_bound" for one in found) else waiting(seen)
    except (Late, KnownError) as e:
        return found, measured, [("speed", str(e) or "no time was left to time all changes")]
    return found, measured, []


def compared(search: Search, lab: Lab, seen: Seen, check: str, change: Overlay) -> Seen:
    """The ratio of times with the change and without; infinite where it does not train, or is not clearly faster."""
    if check in BY_WATCHING:
        after = watched(search.request, lab, change)["step_sec"]
        return {"ratio": after / seen["step_sec"], "step_sec": [seen["step_sec"], after]}
    found = search.compared({}, change)
    if "failed" in found:
        return {"ratio": math.inf}
    per_batch = TIMES if check == "batch_too_small" else 1
    ratio = statistics.median(found["ratios"]) if is_faster([r / per_batch for r in found["ratios"]]) else math.inf
    if check in BY_START:
        before, after = (a + search.facts["steps"] * b for a, b in zip(found["first_sec"], found["step_sec"], strict=True))
        ratio = after / before
    return {"ratio": ratio / per_batch, "step_sec": found["step_sec"]}


def judged(check: str, text: str, tried: list[tuple[Overlay, Seen]]) -> list[Finding]:
    change, best = min(tried, key=lambda one: one[1]["ratio"])
    is_worth = best["ratio"] < (0.5 if check == "batch_too_small" else 1 - LEAST)  # which trains otherwise, too
    return [Finding(check, SLOW, text, best, 1 - best["ratio"], 0.9, change, tried=True)] if is_worth else []


def whole_run(config: Overlay, seen: Seen) -> tuple[dict[str, float], float]:
    """Seconds of a run by part, and how often it validates."""
    trainer, saves = config["trainer"], config["checkpoints"].get("every_n_steps")
    ends = (trainer.get("max_steps") or -1, (trainer.get("max_epochs") or -1) * seen["steps_per_epoch"])
    steps, (interval, every) = min((n for n in ends if n > 0), default=10**6), how_often(trainer)
    batches = seen["steps_per_epoch"] * (seen["batch_size"] / seen["micro_batch_size"])
    validations = steps / seen["steps_per_epoch"] / every / (interval / batches if type(interval) is int else interval)
    ledger = {part: sec * steps / seen["steps"] for part, sec in seen["parts"].items()} | {"start": STARTS_SEC}
    besides = {"validation": validations * seen["validation_sec"]}
    return ledger | besides | {"checkpoints": seen["checkpoint_sec"] * (steps / saves if saves else 1)}, validations


def how_often(trainer: dict[str, Any]) -> tuple[float, int]:
    return trainer.get("val_check_interval") or 1.0, trainer.get("check_val_every_n_epoch", 1) or 1


def overheads(ledger: dict[str, float], config: Overlay, validations: float) -> Iterator[Finding]:
    """Validation and checkpoints that take more than a quarter of a run; how seldom takes a twentieth."""
    for part in ("validation", "checkpoints"):
        total = max(sum(ledger.values()), 1e-9)
        share = ledger.get(part, 0.0) / total
        if share > MOST:
            change = seldom(config, part, share * (1 - AFTER) / (1 - share) / AFTER, validations)
            text = f"{part} takes {share:.0%} of a run, about {ledger[part]:.0f} of {total:.0f} s"
            numbers = {"share": share, "seconds": ledger[part]}
            yield Finding(f"{part}_too_often", SLOW, text, numbers, share - AFTER, 0.9, change)


def seldom(config: Overlay, part: str, times: float, validations: float) -> Overlay:
    """So many times less, by fewer validations, and shorter ones. What is the best so far is saved after each."""
    trainer, saves = config["trainer"], config["checkpoints"].get("every_n_steps")
    if part == "checkpoints" and saves:
        return {"checkpoints": {"every_n_steps": math.ceil(saves * times)}}
    rarer, (interval, every) = min(times, max(validations / FEWEST, 1.0)), how_often(trainer)
    how: Overlay = {"val_check_interval": 1.0, "check_val_every_n_epoch": max(1, round(every * interval * rarer))}
    if type(interval) is int:
        how = {"val_check_interval": math.ceil(interval * every * rarer), "check_val_every_n_epoch": None}
    if times > 1.2 * rarer and not isinstance(limit := trainer.get("limit_val_batches") or 1.0, int):
        how["limit_val_batches"] = float(f"{limit * rarer / times:.2g}")
    return {"trainer": how}


def suspected(config: Overlay, seen: Seen) -> Iterator[Suspect]:
    """What config and parts give a reason to time."""
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    shares = {part: sec / sum(seen["parts"].values()) for part, sec in seen["parts"].items()}
    kind, precision, batch, micro = (seen[n] for n in ("device", "precision", "batch_size", "micro_batch_size"))
    if shares.get("callbacks", 0.0) > LEAST:
        given = trainer.get("callbacks") or []
        for one in given:
            change = {"trainer": {"callbacks": [other for other in given if other is not one]}}
            yield "slow_callback", f"the callback {one['class_path'].rpartition('.')[2]} is slow", [change]
        if (every := trainer.get("log_every_n_steps", 50)) < 10:
            text = f"each {every} steps there is a log, and what it measures"
            yield "logs_too_often", text, [{"trainer": {"log_every_n_steps": 50}}]
    for name, off in (("profiler", None), ("detect_anomaly", False), ("deterministic", False)):
        if trainer.get(name):
            yield name, f"trainer.{name} is on", [{"trainer": {name: off}}]
    for name in ("activation_checkpointing", "compile"):
        if model.get(name):
            yield name, f"model.{name} is on, and does not pay here", [of_model(**{name: False})]
    if config.get("threads"):
        yield "threads", f"threads is {config['threads']}, not what torch takes by itself", [{"threads": None}]
    half = "bf16-mixed" if has_bfloat16(kind) and "16" not in precision else precision
    best = {"cpu": "32-true", "cuda": half}.get(kind.type, precision)
    if precision != best:
        yield "precision", f"precision is {precision} on a {kind.type}", [{"trainer": {"precision": best}}]
    if 4 * micro <= batch:
        text = f"a step is {batch // micro} micro-batches of {micro}"
        yield "micro_batch_too_small", text, [of_micro(batch // n) for n in (1, 2, 4) if batch % n == 0]
    elif batch <= BATCH:
        larger = {"data": {"init_args": {"batch_size": TIMES * batch, "micro_batch_size": None}}}
        yield "batch_too_small", f"a step is {batch} samples, and little of it is arithmetic", [larger]
    workers, waits = data.get("num_workers", 0), shares.get("data_wait", 0.0)
    if workers or waits > WAITS:
        several = [{"data": {"init_args": {"num_workers": n}}} for n in (0, 2, 4) if n != workers]
        yield "data_bound", f"with {workers} workers a step waits for data for {waits:.0%} of its time", several
    optimizer = model["optimizer"]
    if shares.get("optimizer", 0.0) > LEAST and "fused" in takes(optimizer) and not optimizer["init_args"].get("fused"):
        text = f"the optimizer takes {shares['optimizer']:.0%} of the time, parameter by parameter"
        yield "not_fused", text, [of_model(optimizer={"init_args": {"fused": True}})]


def waiting(seen: Seen) -> Iterator[Finding]:
    """Time that data take, and no worker can."""
    for part, what, least in (("data_wait", "waits for data", LEAST), ("transform", "is the transform of its batch", 0.5)):
        share = seen["parts"].get(part, 0.0) / sum(seen["parts"].values())
        if share > least and seen["device"].type == "cpu":
            text, todo = f"{share:.0%} of a step {what}, and workers do not help", "make it cheaper in the data module"
            yield Finding("data_bound", SLOW, text, {"share": share}, share, 0.7, todo=todo)
