"""Why training is slow: the parts of some steps, and changes there is a reason for, timed in turn with the config."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Trainer

from src.config.request import Request, from_flag
from src.diagnosis.finding import SLOW, Finding, Overlay, Unknown
from src.diagnosis.probe import LIMIT_SEC, WARM, Observer, Probe, Runner, clock, run_trial
from src.diagnosis.subject import VAL_SAMPLES, Subject, Trial
from src.run.device import fastest_precision
from src.run.errors import KnownError
from src.run.folder import flat
from src.run.ledger import LEDGER
from src.tuning.judge import is_faster
from src.tuning.search import Late, Search

LEAST, WAITS, TRANSFORMS = 0.2, 0.1, 0.5  # of the time: what wins back less is no fault; for data that are suspect
MOST, AFTER, FEWEST = 0.25, 0.05, 5  # of a run, beside training; what it is brought to; validations that a run keeps
STEPS, WATCHED_SEC, STARTS_SEC = 400, 4.0, 6.0  # that are watched, at most; of a run around training, about
DEAR = {"threads": None, "trainer.profiler": None, "trainer.detect_anomaly": False, "trainer.deterministic": False}
DEAR |= {"model.activation_checkpointing": False}  # and what each is where it costs nothing
TINY, MANY = "batches_too_small", 0.5  # and what a sample must take of its time in a larger batch
MOST_DATA, LEAST_DATA_SEC = 0.6, 0.005  # of a step: where data take more, they may be small, too
NEXT = "[_TrainingEpochLoop].train_dataloader_next"
LEAST_SEC, LEAST_HOOK_SEC, TIMED_SEC = 0.02, 0.002, 10.0  # less in a step is nothing to mend; of a module's steps
HOOKS = ("slow_callback", "logs_too_often")  # which `tune` leaves out
Seen = dict[str, Any]


class Clock(Observer):
    """Seconds of the steps after the first ones by part, of the validation after them, and of a checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step <= WARM:
            self.begun, self.first = LEDGER.so_far(), trainer.global_step

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        parts = {name: sec - self.begun.get(name, 0.0) for name, sec in LEDGER.so_far().items()}
        self.seen: Seen = {"validation": parts.pop("validation", 0.0), "parts": parts, "save": -clock()}
        with TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder, "step-0.ckpt"), storage_options=1)
            getattr(trainer.strategy.checkpoint_io, "finish", int)()
        self.seen |= {"save": self.seen["save"] + clock(), "steps": max(trainer.global_step - self.first, 1)}

    def measured(self) -> Seen:
        parts, total = self.seen["parts"], sum(self.seen["parts"].values())
        waits, turns, *hooks = (parts.get(n, 0.0) / total for n in ("data_wait", "transform", "callbacks", "logging"))
        data = waits * (waits > WAITS) + turns * (turns > TRANSFORMS)
        return self.seen | {"step_sec": total / self.seen["steps"], "data": data, "hooks": sum(hooks)}


def watched(runner: Runner, overlay: Overlay) -> Seen:
    probe = runner.run([Trial(overlay, STEPS)], lambda: [Clock()], WATCHED_SEC)[0]
    if not (seen := probe.measured.get("Clock")):
        raise KnownError(probe.failed or "training ended within its first steps")
    return probe.extra | seen


def slow(
    request: Request, runner: Runner, folder: Path, budget_sec: float
) -> tuple[list[Finding], Seen, list[Unknown]]:
    """What makes training slow; `ledger` has the seconds of a whole run by part, and `folder` gets a log of timings."""
    found, measured, unknown, config = list[Finding](), Seen(), list[Unknown](), request.config
    try:
        seen = watched(runner, {})
        ledger, *counts = whole_run(config, seen)
        measured, found = {"ledger": ledger, "step_sec": seen["step_sec"]}, [*overheads(ledger, config, *counts)]
        with Search(request, folder, {}, budget_sec, runner.waiting) as search:
            for check, text, key, values in suspected(config, seen):
                changes = [from_flag(key, json.dumps(value), config) for value in values]
                ratios = [time_ratio(search, runner, seen, check, change) for change in changes]
                ratio, numbers = min(ratios), {"step_sec": seen["step_sec"], "time_ratio": min(*ratios, 1.0)}
                if ratio < (MANY if check == TINY else 1 - LEAST):
                    change = changes[ratios.index(ratio)]
                    found.append(Finding(check, SLOW, text, numbers, 1 - ratio, 0.9, change, tried=True))
                elif check == "data_bound" and 0 not in values and seen["data"] > LEAST and seen["device"] == "cpu":
                    todo = "no number of workers mends it: make it cheaper in the data module"
                    found.append(Finding(check, SLOW, text, numbers, seen["data"], 0.7, todo=todo))
    except (Late, KnownError) as e:
        unknown.append(("speed", str(e) or "no time was left to time all changes"))
    return found, measured, unknown


def time_ratio(search: Search, runner: Runner, seen: Seen, check: str, change: Overlay) -> float:
    if check in HOOKS:
        return (1 - seen["hooks"]) / (1 - watched(runner, change)["hooks"])  # shares, which other work does not move
    if not hasattr(search, "facts"):
        search.begin()
        search.allow(1.0)
    samples = change["data"]["init_args"]["batch_size"] / seen["batch_size"] if check == TINY else 1
    ratios = sorted(ratio / samples for ratio in search.compared({}, change).get("ratios", []))
    # Steps of more samples take no less time, so few pairs are timed.
    faster = bool(ratios) and (max(ratios) < MANY if check == TINY else is_faster(ratios))
    return ratios[len(ratios) // 2] if faster else math.inf  # it fails, or gains nothing


def whole_run(config: Overlay, seen: Seen) -> tuple[dict[str, float], float, float]:
    """Of a run: seconds by part, micro-batches, validations."""
    trainer, per_epoch, saves = config["trainer"], seen["steps_per_epoch"], config["checkpoints"].get("every_n_steps")
    ends = (trainer.get("max_steps") or -1, (trainer.get("max_epochs") or -1) * per_epoch)
    steps, each = min((n for n in ends if n > 0), default=10**6), seen["batch_size"] / seen["micro_batch_size"]
    interval, every = trainer.get("val_check_interval") or 1.0, trainer.get("check_val_every_n_epoch", 1) or 1
    validations = steps * each / every / (interval if type(interval) is int else interval * per_epoch * each)
    ledger = {part: sec * steps / seen["steps"] for part, sec in seen["parts"].items()} | {"start": STARTS_SEC}
    ledger["checkpoints"] = seen["save"] * (steps / saves if saves else 1)
    ledger["validation"] = validations * seen["validation"] * max(seen["num_samples"]["val"] / VAL_SAMPLES, 1)
    return ledger, steps * each, validations


def overheads(ledger: dict[str, float], config: Overlay, batches: float, validations: float) -> Iterator[Finding]:
    """What takes more than a quarter of a run; how seldom takes a twentieth. The best is saved after a validation."""
    saves, total = config["checkpoints"].get("every_n_steps"), sum(ledger.values()) + 1
    for part, share in [(part, ledger.get(part, 0.0) / total) for part in ("validation", "checkpoints")]:
        times = max(share * (1 - AFTER) / (1 - share) / AFTER, 1)
        kept = max(validations / times, min(FEWEST, validations), 1)
        how: Overlay = {"val_check_interval": max(1, round(batches / kept)), "check_val_every_n_epoch": None}
        rarely = part == "checkpoints" and saves and {"checkpoints": {"every_n_steps": math.ceil(saves * times)}}
        text, numbers = f"{share:.0%} of a run goes for {part}", {"share": share, "seconds": ledger.get(part)}
        if share > (MOST / 2 if rarely else MOST):  # how often it saves was asked for
            yield Finding(f"{part}_too_often", SLOW, text, numbers, share - AFTER, 0.9, rarely or {"trainer": how})


def suspected(config: Overlay, seen: Seen) -> list[tuple[str, str, str, list[Any]]]:
    """What there is a reason to time: check, what is wrong, key, and values of which one is to mend it."""
    given, callbacks, hooks = flat(config), config["trainer"].get("callbacks") or [], seen["hooks"] > LEAST
    precision, batch, micro = (seen[name] for name in ("precision", "batch_size", "micro_batch_size"))
    best = "32-true" if seen["device"] == "cpu" else precision if "16" in precision else fastest_precision("auto")
    workers, logs = given.get("data.num_workers", 0), given.get("trainer.log_every_n_steps", 50)
    data, others = f"data take {seen['data']:.0%} of a step", [n for n in (0, 2, 4) if n != workers]
    rows: list[tuple[Any, str, str, str, list[Any]]] = [
        (precision != best, "precision", f"precision is {precision}", "trainer.precision", [best]),
        (4 * micro <= batch, "micro_batch", f"{batch // micro} micro-batches a step", "data.micro_batch_size", [batch]),
        (workers or seen["data"], "data_bound", f"{data}, with {workers} workers", "data.num_workers", others),
        (batch <= 8, TINY, f"a step has {batch} samples", "data.batch_size", [32]),
        (hooks and logs < 10, HOOKS[1], f"a log each {logs} steps", "trainer.log_every_n_steps", [50]),
    ]
    on = {key: given.get(key) or given.get(f"{key}.class_path") for key in DEAR}
    rows += [(on[key], key.split(".")[-1], f"{key} is {on[key]}", key, [cheap]) for key, cheap in DEAR.items()]
    for one in callbacks:
        left = [other for other in callbacks if other is not one]
        text = f"the callback {one['class_path']} takes its time in each step"
        rows.append((hooks, HOOKS[0], text, "trainer.callbacks", [left]))
    return [(check, text, key, values) for reason, check, text, key, values in rows if reason]


class Hooks(Observer):
    """Which part of a module's steps waits for data, or is in callbacks and its own hooks, as Lightning's profiler has
    them."""

    count, begun, since, end = 0, dict[str, float](), 0.0, 0.0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.count, self.end = self.count + 1, clock()
        if self.count == 1:  # which starts workers
            self.begun, self.since = self.seconds(trainer), clock()

    def seconds(self, trainer: Any) -> dict[str, float]:
        return {name: sum(times) for name, times in trainer.profiler.recorded_durations.items()}

    def found(self, trainer: Any, model: Any) -> list[Finding]:
        steps, total = self.count - 1, self.end - self.since
        spent = {name: sec - self.begun.get(name, 0.0) for name, sec in self.seconds(trainer).items()}
        theirs = [one.state_key for one in trainer.callbacks if not type(one).__module__.startswith("src.diagnosis")]
        parts = {NEXT: spent.get(NEXT, 0.0)}
        for of in (*(f"[Callback]{key}" for key in theirs), f"[LightningModule]{type(model).__name__}"):
            own = tuple(f"{of}.on_{when}_" for when in ("train_batch", "before", "after"))
            parts[of.partition("]")[2]] = sum(sec for name, sec in spent.items() if name.startswith(own))
        slow = [(name, sec) for name, sec in parts.items() if is_slow(name, sec, total, steps)]
        return [told_slow(name, sec, total, steps, trainer) for name, sec in slow]


def is_slow(name: str, sec: float, total: float, steps: int) -> bool:
    """Small samples that are put together one by one take some milliseconds anywhere; callbacks need not."""
    least = (LEAST_SEC if sec < MOST_DATA * total else LEAST_DATA_SEC) if name == NEXT else LEAST_HOOK_SEC
    return steps > 1 and sec > LEAST * total and sec > least * steps


def told_slow(name: str, sec: float, total: float, steps: int, trainer: Any) -> Finding:
    is_data, numbers = name == NEXT, {"step_sec": total / steps, "of_it_sec": sec / steps}
    # While it waits for data, a GPU may have work: what it does then cannot be won.
    hidden = total - sec if is_data and trainer.strategy.root_device.type != "cpu" else 0.0
    check, what = ("data_bound", "waits for data") if is_data else (HOOKS[0], f"{name} takes its time in each step")
    todo = "more num_workers in the loader, or a sample that is made with less work" if is_data else "do it less often"
    text, gain = f"{what}: {sec / total:.0%} of a step", max(sec - hidden, 0.0) / total
    return Finding(check, SLOW, text, numbers, gain, 0.8, todo=todo)


def slow_module(subject: Subject, runner: Runner) -> tuple[list[Finding], Seen, list[Unknown]]:
    """What makes a module's training slow, of its steps alone."""
    trial = Trial({"trainer": {"profiler": "simple"}}, STEPS // 4, validations=0)
    (probe,) = runner.all([(run_trial, (subject, trial, hooks, TIMED_SEC, True))], LIMIT_SEC)
    probe = probe if isinstance(probe, Probe) else Probe(**probe)
    found = [one for one in probe.findings if one.question == SLOW and one.gain > LEAST]
    return found, {}, [("speed", probe.failed)] if probe.failed else []


def hooks() -> list[Observer]:
    return [Hooks()]
