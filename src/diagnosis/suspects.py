"""Which changes of a config are worth a trial, by what it says and how the config as it is trains."""

import json
import math
import re
import statistics
from collections.abc import Iterator
from functools import reduce
from itertools import chain
from typing import Any

from src.config.request import from_flag, merge
from src.diagnosis.finding import BADLY, REASON, Finding
from src.diagnosis.probe import Probe
from src.diagnosis.rates import FAR
from src.tuning.candidates import takes
from src.tuning.judge import level

ODD: tuple[tuple[str, str, float, float, Any], ...] = (  # from the first number to the second the third is tried
    ("dropout_too_strong", r"model\.network\..*drop\w*", 0.55, 1.0, 0.1),  # a half is usual
    ("weight_decay_too_strong", r"model\.optimizer\.weight_decay", 0.3, math.inf, 0.01),
    ("momentum_too_high", r"model\.optimizer\.momentum", 0.97, 1.0, 0.9),
    ("epsilon_too_large", r"model\.optimizer\.eps", 1e-3, math.inf, 1e-8),
    ("labels_too_smooth", r"model\.label_smoothing", 0.3, 1.0, 0.0),
    ("clipped_too_short", r"trainer\.gradient_clip_val", 1e-30, 0.1, 1.0),
    ("batches_too_small", r"data\.batch_size", 1, 2, 32),
    ("average_too_slow", r"ema\.decay", 0.995, 1.0, None),
)
OF_MODULE = (  # above the first number the second is tried
    ("dropout_too_strong", "dropout", 0.7, 0.1),
    ("weight_decay_too_strong", "weight_decay", 0.3, 0.01),
    ("norm_too_fast", "norm_momentum", 0.9, 0.1),
    ("momentum_too_high", "momentum", 0.97, 0.9),
)
BLIND = ("lr_too_low", "lr_too_high")  # tried of every config
WIDTHS = r"model\.network\.(\w+_)?(dim|widths?|hidden|units|d_model)(_size)?"
PLAIN = r"torch\.optim\.(SGD|ASGD|Adagrad|Adadelta)"
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
ENDS, NUMBER = ("trainer.max_epochs", "trainer.max_steps"), (int, float)
FEW_STEPS = 100  # of a run: a schedule that ends there hides whether the loss still falls
Row = tuple[str, dict[str, Any]]  # check, new values by key


def suspects(case: Any) -> list[Finding]:
    """The likeliest first; a case is what `examine` knows of the config as it is."""
    given = dict(flat({name: case.config.get(name) or {} for name in ("model", "data", "trainer", "ema")}))
    base = case.base[0] if case.base else case.first
    lost = bool(base.failed) or not all(map(math.isfinite, base.losses))
    left = 1.0 if lost or not base.losses else level(base.losses) / max(abs(base.losses[0]), 1e-12)
    drawn = not any(given.get(f"model.{name}") for name in ("init_from", "network.pretrained", "unfreeze_epoch"))
    found = []
    rows = (of_model(case, given, lost, left), of_data(case, given, left), of_end(case, base, given, left))
    for check, keys in chain(*rows):
        change: dict[str, Any] = reduce(merge, (from_flag(k, json.dumps(v), case.config) for k, v in keys.items()), {})
        now = ", ".join(f"{key} {given.get(key, 'by default')}" for key in keys)
        sure = check == "untrained_parameters" and drawn  # weights that are drawn, and stay so
        text = f"{check.replace('_', ' ')}: {now}"
        reason = 0.6 if lost or check not in BLIND else REASON
        found += [Finding(check, BADLY, text, {"loss_left": left}, 0.3, reason, change, certain=sure)] * bool(keys)
    return found


def flat(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Values by the keys of flags; a class is a value, too."""
    for name, value in node.items():
        key = at if name in ("init_args", "class_path") else f"{at}.{name}".lstrip(".")
        yield from flat(value, key) if isinstance(value, dict) else [(key, value)]


def of_model(case: Any, given: dict[str, Any], lost: bool, left: float) -> Iterator[Row]:
    optimizer, schedule = (case.config["model"]["init_args"].get(name) or {} for name in ("optimizer", "schedule"))
    rates = {n: v for n, v in (takes(optimizer) | optimizer["init_args"]).items() if n == "lr" or n.endswith("_lr")}
    for side, factor in (("high", 0.1), *((("high", 0.01), ("high", 0.001)) if lost else (("low", 10),))):
        if "model.schedule.max_lr" not in given:
            yield f"lr_too_{side}", {f"model.optimizer.{n}": float(f"{v * factor:.3g}") for n, v in rates.items()}
    if lost and not given.get("trainer.gradient_clip_val"):
        yield "gradients_explode", {"trainer.gradient_clip_val": 1.0}
    if left > 0.9 and re.fullmatch(PLAIN, optimizer["class_path"]):
        yield "optimizer_too_slow", {"model.optimizer": ADAM}
    for check, pattern, low, high, new in ODD:
        fits = {k: v for k, v in given.items() if type(v) in NUMBER and re.fullmatch(pattern, k)}
        yield check, {k: new for k, v in fits.items() if low <= v <= high}
    usual = takes(schedule) if str(schedule.get("class_path")).startswith("src.") else {}
    if schedule and (not usual or any(usual.get(n) != v for n, v in (schedule.get("init_args") or {}).items())):
        yield "schedule_too_slow", {"model.schedule": {"class_path": "src.optim.schedules.WarmupCosine"}}
    if given.get("model.freeze"):
        yield "untrained_parameters", {"model.freeze": []}
    if isinstance(given.get("model.class_weights"), list):
        yield "class_weights", {"model.class_weights": None}
    precision = str(given.get("trainer.precision"))
    if "16" in precision and (lost or "true" in precision):
        yield "precision_too_low", {"trainer.precision": "32-true"}
    if odd_weights(case.first.extra):
        yield "initial_weights", {"model.reset": True}
    if left > 0.5 and not lost and case.first.extra.get("parameters", 0) < 100_000:
        wide = {k: v if isinstance(v, list) else [v] for k, v in given.items() if re.fullmatch(WIDTHS, k)}
        yield "too_narrow", {k: [wider(n) for n in v] if v is given[k] else wider(v[0]) for k, v in wide.items()}
        yield "initial_weights", {"model.reset": True}


def odd_weights(seen: dict[str, Any]) -> bool:
    """Whether a layer of the network begins with weights that make numbers much larger, or smaller."""
    return seen.get("largest_weights", 1.0) > 3 or seen.get("smallest_weights", 1.0) < 0.02


def wider(n: int) -> int:
    return n * max(4, math.ceil(32 / n))


def of_data(case: Any, given: dict[str, Any], left: float) -> Iterator[Row]:
    known = takes(case.config["data"])
    for name, value in (case.config["data"].get("init_args") or {}).items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and left > 0.5:
            yield f"{name}_too_strong", {f"data.{name}": []}
        if (known.get(name, 0) is None and type(first) in NUMBER) or (value is False and known.get(name) is True):
            yield "input_scale", {f"data.{name}": known[name]}
    size, of = given.get("data.batch_size", 0), (case.first.extra.get("num_samples") or {}).get("train", 0)
    if size > 32 and of < 8 * size:
        new = 2 ** int(math.log2(max(min(size // 8, of // 32), 16)))
        yield "batches_too_large", {"data.batch_size": new, "data.micro_batch_size": None}


def of_end(case: Any, base: Any, given: dict[str, Any], left: float) -> Iterator[Row]:
    """Where the trial was as long as a run: it ends too soon, or too late."""
    yield "too_short", {k: times * given[k] for times in too_short(case, base) for k in ENDS if (given.get(k) or 0) > 0}
    scores = [one.get(case.scale.metric, math.nan) for one in base.scores]
    if case.scale.mode == "min" and len(scores) > 3 and scores[-1] > 1.1 * min(scores) and left < 0.5:
        yield "overfitting", {k: 0.3 for k, v in given.items() if re.fullmatch(ODD[0][1], k) and v < 0.3}
        yield "overfitting", {k: 0.2 for k in given if k == "model.optimizer.weight_decay"}


def too_short(case: Any, base: Any) -> Iterator[int]:
    """How many times as long a run may have to be, that its trial is as long as."""
    if case.whole and (falls(base.losses) or case.total <= FEW_STEPS):
        yield max(3, round(FEW_STEPS / case.total)) if case.total <= FEW_STEPS else 3


def falls(losses: list[float]) -> bool:
    """Whether the last third of a training has brought much."""
    third, end = len(losses) // 3, level(losses)
    return bool(third) and level(losses[: 2 * third]) - end > 0.1 * min(abs(end), losses[0] - end)


def warms_up(probe: Probe, rate: float) -> bool:
    """Whether the rate has hardly come to what it is to be."""
    return bool(probe.rates) and statistics.median(probe.rates) < 0.3 * rate


def of_module(case: Any, test: dict[str, Any]) -> list[Finding]:
    """What is odd in a module of others, its optimizers, or its Trainer's arguments; overlays as of `Levers`."""
    own, seen, base = case.config["trainer"], case.first.extra, case.base[0] if case.base else case.first
    lost = bool(base.failed) or not all(map(math.isfinite, base.losses))
    ratio = test.get("suggested", 0.0) / (test.get("config") or 1.0)
    times = [float(f"{n:.2g}") for n in (ratio, ratio / 10) if n > FAR or 0 < n < 1 / FAR]
    blind = [n for n in (10.0, 0.1) if n not in times]
    times = blind + times
    still = not lost and len(base.losses) > 1 and level(base.losses) > 0.9 * abs(base.losses[0])
    times += [100.0, 1000.0] * still + [0.01, 0.001] * lost  # ten times may not be seen, either
    if warms_up(base, test.get("config", 0.0)):
        times, still = [n for n in times if n < 1], False
    learns = [(n, f"{n:g} times the rate learns more") for n in times]
    rows: list[Any] = [(f"lr_too_{'low' if n > 1 else 'high'}", line, {"lr_times": n}) for n, line in learns]
    clip, precision = own.get("gradient_clip_val") or 0, own.get("precision")
    rows += [("clipped_too_short", clip, {"trainer": {"gradient_clip_val": 1.0}})] * (0 < clip <= 0.1)
    rows += [("gradients_explode", "no limit is set", {"trainer": {"gradient_clip_val": 1.0}})] * (lost and not clip)
    rows += [("precision_too_low", precision, {"trainer": {"precision": "32-true"}})] * ("16" in str(precision))
    for check, name, low, new in OF_MODULE if case.scale.metric else ():  # training alone is better without them
        rows += [(check, seen.get(name), {name: new})] * (seen.get(name, 0) > low)
    half, highest = len(base.rates) // 2, test.get("config", 0.0)
    over = half and base.rates[half] < 0.05 * max(base.rates[:half])
    end = base.rates[-1] * max(case.total / len(base.rates), 1) if half else math.inf  # of a warm-up in a whole run
    never = half and base.rates[-1] >= max(base.rates) and end < 0.5 * highest
    rows += [("schedule_too_slow", f"at half of {2 * half} steps", {"schedule": None})] * bool(over or never)
    reset = still or odd_weights(seen)
    rows += [("initial_weights", "drawn anew, more is learned", {"model": {"init_args": {"reset": True}}})] * reset
    given = {name: own[name] for name in ("max_epochs", "max_steps") if (own.get(name) or 0) > 0}
    ends = [{name: n * value for name, value in given.items()} for n in too_short(case, base) if given]
    rows += [("too_short", f"{case.total:.0f} steps", {"trainer": end}) for end in ends]
    tried = [{"lr_times": n} for n in blind if not (lost or still)]
    told = [(f"{check.replace('_', ' ')}: {now}", REASON if new in tried else 0.6) for check, now, new in rows]
    return [Finding(row[0], BADLY, text, {}, 0.3, sure, row[-1]) for row, (text, sure) in zip(rows, told, strict=True)]
