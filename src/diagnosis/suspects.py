"""Which changes of a config are worth a trial, by what it says and how the config as it is trains."""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from src.config.request import from_flag, merge
from src.diagnosis.finding import BADLY, Finding
from src.tuning.candidates import takes
from src.tuning.judge import level

# Keys whose values from the first number to the second are worth a trial of another value.
ODD: tuple[tuple[str, str, float, float, Any], ...] = (
    ("dropout", r"model\.network\..*drop\w*", 0.5, 1.0, 0.1),
    ("weight_decay", r"model\.optimizer\.weight_decay", 0.3, math.inf, 0.01),
    ("label_smoothing", r"model\.label_smoothing", 0.3, 1.0, 0.0),
    ("over_clipping", r"trainer\.gradient_clip_val", 1e-30, 0.1, 1.0),
    ("small_batches", r"data\.batch_size", 1, 2, 32),
    ("small_batches", r"data\.micro_batch_size", 1, 2, None),
    ("average", r"ema\.decay", 0.995, 1.0, None),
)
WIDTHS = re.compile(r"model\.network\.(\w+_)?(dim|widths?|hidden|units|d_model)(_size)?")
PLAIN = re.compile(r"torch\.optim\.(SGD|ASGD|Adagrad|Adadelta)")
ADAM, COSINE = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}, "src.optim.schedules.WarmupCosine"
Change = tuple[str, str, dict[str, Any]]  # name of the check, what may be wrong, new values by key


def suspects(case: Any) -> list[Finding]:
    """The likeliest first; a case is what `examine` knows of the config as it is."""
    given = dict(
        flat({name: part for name, part in case.config.items() if name in ("model", "data", "trainer", "ema")})
    )
    base = case.base[0] if case.base else case.first
    lost = bool(base.failed) or not all(map(math.isfinite, base.losses))
    left = 1.0 if lost or not base.losses else level(base.losses) / max(abs(base.losses[0]), 1e-12)
    found = [*of_rate(case.config, given, lost, left), *of_values(given, lost), *of_fit(case, given, lost, left)]
    return [Finding(name, BADLY, text, gain=0.3, change=overlay(case.config, keys)) for name, text, keys in found]


def flat(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Values by the keys of flags; a class is a value, too."""
    for name, value in node.items():
        key = at if name in ("init_args", "class_path") else f"{at}.{name}".lstrip(".")
        yield from flat(value, key) if isinstance(value, dict) else [(key, value)]


def overlay(config: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in keys.items():
        text = yaml.safe_dump(value, default_flow_style=True, width=math.inf).split("\n")[0]
        found = merge(found, from_flag(key, text, config))
    return found


def of_rate(config: dict[str, Any], given: dict[str, Any], lost: bool, left: float) -> Iterator[Change]:
    optimizer, schedule = config["model"]["init_args"]["optimizer"], config["model"]["init_args"].get("schedule")
    known = takes(optimizer) | (optimizer.get("init_args") or {})
    rates = {n: v for n, v in known.items() if (n == "lr" or n.endswith("_lr")) and isinstance(v, (int, float))}
    for side, factor in (("high", 0.1), ("low", 10.0)):
        if rates and not (lost and side == "low") and "model.schedule.max_lr" not in given:
            keys = {f"model.optimizer.{n}": float(f"{v * factor:.3g}") for n, v in rates.items()}
            yield f"lr_too_{side}", f"the learning rate may be too {side}: {rates}", keys
    if PLAIN.fullmatch(optimizer["class_path"]) and left > 0.9:
        yield "optimizer", "the loss hardly falls with this optimizer", {"model.optimizer": ADAM}
    usual = schedule and schedule["class_path"].startswith("src.") and takes(schedule)
    if schedule and (not usual or any(usual[n] != v for n, v in (schedule.get("init_args") or {}).items())):
        yield "schedule", "the schedule may keep the rate low for too long", {"model.schedule": {"class_path": COSINE}}


def of_values(given: dict[str, Any], lost: bool) -> Iterator[Change]:
    for key, value in given.items():
        for name, pattern, low, high, new in ODD:
            if type(value) in (int, float) and low <= value <= high and re.fullmatch(pattern, key):
                yield name, f"{key} is {value}", {key: new}
    if "16" in (precision := str(given.get("trainer.precision"))) and (lost or "true" in precision):
        yield "precision", f"{precision} may be too coarse", {"trainer.precision": "32-true"}
    if lost and not given.get("trainer.gradient_clip_val"):
        yield "exploding", "the loss or a gradient is not finite", {"trainer.gradient_clip_val": 1.0}
    if given.get("model.freeze"):
        yield "untrained_parameters", f"{given['model.freeze']} are not trained", {"model.freeze": []}
    if isinstance(given.get("model.class_weights"), list):
        yield "class_weights", "classes are weighted by hand", {"model.class_weights": None}


def of_fit(case: Any, given: dict[str, Any], lost: bool, left: float) -> Iterator[Change]:
    """Too little can be learned, or too much; too soon an end."""
    known = takes(case.config["data"])
    for name, value in (case.config["data"].get("init_args") or {}).items():
        of = [value] if not isinstance(value, list) else value
        if left > 0.5 and of and all(isinstance(one, dict) for one in of):
            yield f"{name}_too_strong", f"data.{name} may change samples too much", {f"data.{name}": []}
        if (value is False and known.get(name) is True) or (known.get(name, 0) is None and type(of[:1]) is float):
            yield "input_scale", f"data.{name} is not as by default", {f"data.{name}": known[name]}
    wide = {key: value for key, value in given.items() if WIDTHS.fullmatch(key)}
    if wide and left > 0.5 and not lost and case.first.extra.get("parameters", 0) < 100_000:
        by = {key: [4 * n for n in value] if isinstance(value, list) else 4 * value for key, value in wide.items()}
        yield "too_narrow", "the network may be too narrow", by
    losses = (case.base[0] if case.base else case.first).losses
    ends = {
        key: 3 * n for key, n in given.items() if key in ("trainer.max_epochs", "trainer.max_steps") and (n or -1) > 0
    }
    third = len(losses) // 3
    if case.whole and ends and third and level(losses[: 2 * third]) - level(losses) > 0.1 * abs(level(losses)):
        yield "too_short", "the loss still falls at the end", ends
    scores = [one.get(case.scale.metric, math.nan) for one in case.base[0].scores] if case.base else []
    if case.scale.mode == "min" and len(scores) > 3 and scores[-1] > 1.1 * min(scores) and left < 0.5:
        drops = {key: 0.3 for key, v in given.items() if re.fullmatch(ODD[0][1], key) and v < 0.3}
        decay = (
            {"model.optimizer.weight_decay": 0.2}
            if "weight_decay" in takes(case.config["model"]["init_args"]["optimizer"])
            else {}
        )
        for keys in (drops, decay):
            if keys:
                yield "overfitting", "the score of validation rises while the loss falls", keys
