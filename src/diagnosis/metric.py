"""What a training is judged by, and what one answer for all samples and a simple model score by that."""

import math
import re
import statistics
from typing import Any

from src.diagnosis.finding import BADLY, Finding
from src.diagnosis.probe import Probe
from src.diagnosis.trials import Scale

UNITS = {"min": "loss|mse", "max": "acc|accuracy|r2"}  # metrics of which simple models are known
LESS, MORE = "nll|mae|mse|rmse|mape|err|error|ppl|perplexity|wer", "f1|auc|auroc|iou|dice|r2|recall|score"
USUAL = ((LESS, "min"), (MORE, "max"))  # and which is best
LOSSES = (("mse_loss",), ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"))  # of numbers, of classes
VAL, SPLIT = r"val|valid|validation", r"[/_.\s]"


def best_where(name: str) -> str:
    """Whether the least or the greatest of a metric is best, by its name; "" where that does not say."""
    words = re.split(SPLIT, name)
    kinds = ((f"loss|{LESS}", "min"), (f"acc|accuracy|precision|{MORE}", "max"))
    modes = {mode for what, mode in kinds if any(re.fullmatch(what, word) for word in words)}
    return modes.pop() if len(modes) == 1 else ""


def wrong_mode(config: dict[str, Any]) -> list[Finding]:
    """Of a config whose checkpoints take the worst for the best."""
    given = config.get("checkpoints") or {}
    name, mode = str(given.get("monitor")), given.get("mode")
    right, line = best_where(name), f"checkpoints take {name} for best where mode {mode} says"
    how: Any = {"change": {"checkpoints": {"mode": right}}, "certain": True, "source": "Prechelt, 1998"}
    wrong = mode and right and mode != right
    return [Finding("monitor_mode", BADLY, line, {"monitor": name}, 0.5, 0.95, **how)] * bool(wrong)


def judged_by(config: dict[str, Any], first: Probe, callbacks: Any = ()) -> tuple[str, str] | None:
    """A metric of validation, and whether the least or the greatest is best; "" for the losses of training; None where
    nothing says what is meant to fall: several optimizers may work against each other."""
    checkpoints, names = config.get("checkpoints") or {}, sorted({name for one in first.scores[:1] for name in one})
    if "model" in config:
        losses = [name for name in names if name.startswith("val") and "loss" in name]
        name = checkpoints.get("monitor") or next(iter(losses), "")
        return name, best_where(name) or checkpoints.get("mode") or "min"
    words = {name: {*re.split(SPLIT, name.removesuffix("/dataloader_idx_0"))} for name in names}
    of_val = [name for name in names if any(re.fullmatch(VAL, word) for word in words[name])]
    exact = [n for n in of_val if len(words[n]) == 2 and "loss" in words[n]]
    asked = [(one.monitor, one.mode) for one in callbacks if getattr(one, "monitor", None)]
    asked += first.extra.get("monitored", ())
    asked = [(n, "min") for n in exact[:1]] + [(n, mode) for n, mode in asked if n in of_val]
    if first.extra.get("optimizers", 1) > 1 or asked:
        return next(iter(asked), None)
    losses, shares = ([n for n in of_val if re.search(what, n)] for what in ("loss", "acc"))
    if len(losses) == 1 or (losses and not shares):  # parts of a loss may rise
        return (losses[0] if len(losses) == 1 else ""), "min"
    usual = ((n, mode) for what, mode in USUAL for n in of_val if any(re.fullmatch(what, word) for word in words[n]))
    return (shares[0], "max") if shares else next(usual, ("", "min"))


def simple(config: dict[str, Any], scale: Scale, first: Probe, measured: dict[str, Any]) -> tuple[float, float]:
    """The less the better. Where the unit is another, the first is what the untrained model scores."""
    kind, sign = ("loss", 1) if scale.mode == "min" else ("score", -1)
    untrained = sign * first.untrained.get(scale.metric, math.nan) if scale.metric else begins(first.losses)
    words = re.split(SPLIT, scale.metric.removesuffix("/dataloader_idx_0"))
    units = [re.fullmatch(f"{VAL}|epoch|{UNITS[scale.mode]}", word) for word in words]
    if not all(units) or (sign > 0 and not is_plain(config, first, measured)):
        return untrained, math.nan
    trivial, linear = (sign * measured.get(f"{name}_{kind}", math.nan) for name in ("trivial", "linear"))
    of_tokens = "num_classes" not in measured and scale.score(first) > trivial  # it is to come there yet
    return trivial if math.isfinite(trivial) and not of_tokens else untrained, linear


def is_plain(config: dict[str, Any], first: Probe, measured: dict[str, Any]) -> bool:
    """Whether the loss has the unit of simple models' losses; that of a module is a loss function, without weights, of
    one target a sample, and nothing else; of a contrastive one, targets are not those of the data. Of tokens, a
    config's alone are counted."""
    loss, value = measured.get("loss"), measured.get("plain_loss", math.nan)
    outputs = measured.get("outputs")
    if loss == "cross_entropy" and outputs != measured.get("num_classes", outputs):
        return False
    whole = "model" in config or (bool(first.losses) and math.isclose(value, first.losses[0], rel_tol=0.01))
    return whole and loss in LOSSES[measured.get("is_class", loss != "mse_loss")]


def begins(losses: list[float]) -> float:
    return statistics.fmean(losses[:3]) if losses else math.nan
