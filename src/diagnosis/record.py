"""What the record of a run says: how it ended, what its curves show, and where its time went."""

import math
import re
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np

from src.config.request import Request, merge
from src.diagnosis.finding import BADLY, SPACE, Finding, Overlay, ranked
from src.diagnosis.rates import with_rates
from src.diagnosis.speed import overheads
from src.loggers.curves import Curve, read_curves
from src.run.errors import NumericsError
from src.run.files import read_json
from src.run.folder import RunFolder, ending
from src.tuning.candidates import rates, takes

RISE, MILD, STILL = 0.1, 0.25, 0.12  # of what was learned: lost again, with or without accuracy; of the second half
RATIO = "optim/update_ratio"
KEPT = {"weight_decay": 0.05, "dropout": 0.3}  # against overfitting, where there is none
Found = Iterator[Finding]


class Line:
    """A curve without what is not finite; `smooth` is its running median of three, `noise` the standard deviation of a
    value, by the median difference of neighbours, which outliers and a trend do not move; `last` of its last fifth."""

    def __init__(self, curve: Curve | None) -> None:
        x, y = curve or (np.zeros(0), np.zeros(0))
        self.steps, self.y = x[np.isfinite(y)], y[np.isfinite(y)]
        self.size, apart = len(self.y), np.diff(self.y) if len(self.y) > 2 else np.zeros(1)
        windows = [self.y[max(i - 1, 0) : i + 2] for i in range(self.size)]
        self.smooth, self.noise = np.array([*map(np.median, windows)]), 1.05 * np.median(abs(apart - np.median(apart)))
        self.last = float(np.median(self.y[-max(self.size // 5, 3) :])) if self.size else math.nan
        self.low = int(self.smooth.argmin()) if self.size else 0
        self.least = float(self.smooth[self.low]) if self.size else math.nan


def record(folder: RunFolder) -> tuple[list[Finding], dict[str, Any]]:
    """The findings, and for pictures `curves`, `marks` (steps: `best`, `overfits`, `diverges`) and `ledger`.

    Raises:
        CheckpointError: there is no run, or its config is damaged.
    """
    config, ended, marks, curves = folder.config(), ending(folder), dict[str, float](), dict[str, Curve]()
    found = list(ends(folder, config, ended))
    try:
        curves = read_curves(folder.path, ("train/", "val/", "optim/", "perf/"))
    except ValueError as e:
        found.append(
            Finding("damaged_record", BADLY, f"metrics.csv is damaged: {e}", confidence=1.0, todo="train anew")
        )
    train, val, acc, ratio = (Line(curves.get(name)) for name in ("train/loss", "val/loss", "val/acc", RATIO))
    if train.size > 4:
        found += of_training(config, train, ratio, read_json(folder.path / "data_report.json"), marks)
    if val.size > 5:
        found += of_validation(config, train, val, acc, marks)
    if ended["status"] == "finished" and not found:
        found += too_short(config, train, val)
    size, micro = (config["data"]["init_args"].get(name) for name in ("batch_size", "micro_batch_size"))
    batches = ended.get("steps", 0) * (size / micro if size and micro else 1)
    found += overheads(ended.get("ledger") or {}, config, batches, val.size)
    told = {name: ended.get(name) for name in ("status", "steps", "best", "error", "ledger")}
    return ranked(found), {**told, "curves": curves, "marks": marks}


def ends(folder: RunFolder, config: Overlay, ended: dict[str, Any]) -> Found:
    """How a run ended, where that was not at its end."""
    status, code, (what, _, todo) = ended["status"], ended.get("exit_code"), str(ended.get("error")).partition(" -> ")
    sure: dict[str, Any] = {"confidence": 1.0, "certain": True, "evidence": {"status": status, "exit_code": code}}
    if (folder.path / "summary.json").exists() and not folder.summary:
        yield Finding("damaged_record", BADLY, "summary.json is damaged", todo="the same command again", **sure)
    elif code == NumericsError.code:
        yield Finding("not_finite", BADLY, what, gain=1.0, change=gentler(config, 0.1), **sure)
    elif status == "failed":
        size = re.search(r"micro_batch_size (\d+)", todo) if "out of memory" in what else None
        change = {"data": {"init_args": {"micro_batch_size": int(size[1])}}} if size else {}
        name, question = ("out_of_memory", SPACE) if "out of memory" in what else ("run_failed", BADLY)
        yield Finding(name, question, what, gain=1.0, change=change, todo=todo or "--debug shows where", **sure)
    elif status in ("stopped", "cut short"):
        text = f"the run is not finished: {status} after {ended.get('steps', 0):,} steps"
        yield Finding("not_finished", BADLY, text, gain=0.5, todo=f"again: {folder.state.get('command')}", **sure)


def gentler(config: Overlay, times: float, clip: bool = True) -> Overlay:
    """With learning rates so many times as high, and gradients that are clipped."""
    given = rates(Request(config, {}, "", Namespace()))
    change = with_rates(config, {name: float(f"{rate * times:.2g}") for name, rate in given.items()})
    return merge(change, {"trainer": {"gradient_clip_val": 1.0}}) if clip else change


def of_training(config: Overlay, train: Line, ratio: Line, report: Overlay, marks: dict[str, float]) -> Found:
    learned, back = float(train.y[0]) - train.least, train.last - train.least
    chance, most = math.log(report.get("num_classes") or math.e**100), max(ratio.y, default=math.nan)
    seen = {"first": float(train.y[0]), "lowest": train.least, "last": train.last, "highest_update_ratio": most}
    flat = learned < max(0.03 * abs(seen["first"]), 3 * train.noise) or 0.97 * chance < train.last < 1.1 * chance
    if flat and not 1e-5 < most < 0.03:
        name, how = ("lr_too_low", "hardly move") if most < 1e-5 else ("lr_too_high", "jump about")
        text = f"nothing is learned: the weights {how}, by up to {most:.1g} of their size at a step"
        change = gentler(config, min(5e-3 / max(most, 1e-9), 1e4) if most < 1e-5 else 0.01, clip=False)
        yield Finding(name, BADLY, text, seen, 0.9, 0.9, change, source="update ratio of about 1e-3 (Karpathy)")
    elif back > max(0.3 * abs(learned), 4 * train.noise):
        marks["diverges"] = float(train.steps[train.low])
        text = (
            f"the training loss rises again from step {marks['diverges']:,.0f}, {train.least:.3g} to {train.last:.3g}"
        )
        yield Finding("loss_diverges", BADLY, text, seen, min(back / max(learned, back), 1), 0.9, gentler(config, 0.3))


def of_validation(config: Overlay, train: Line, val: Line, acc: Line, marks: dict[str, float]) -> Found:
    """Overfitting: the validation loss has its minimum early and rises beyond noise, while that of training falls."""
    marks["best"], end = float(val.steps[val.low]), float(val.steps[-1])
    later, rise = train.y[train.steps >= marks["best"]], val.last - val.least
    learned = max([float(val.y[0]), *train.y[:1]]) - val.least
    mild = acc.size == val.size and acc.last > acc.smooth.max() - max(2 * acc.noise, 0.01)
    falls = len(later) < 6 or later[-3:].mean() < later[:3].mean()
    if marks["best"] > 0.8 * end or not falls or rise < max((MILD if mild else RISE) * learned, 4 * val.noise):
        return
    beyond = val.smooth[val.low :] > val.least + max(2 * val.noise, 0.1 * rise)
    marks["overfits"] = float(val.steps[val.low + int(beyond.argmax())])
    text = f"it overfits from step {marks['overfits']:,.0f} of {end:,.0f}: validation {val.least:.3g} to {val.last:.3g}"
    seen = {"best_step": marks["best"], "lowest": val.least, "last": val.last, "noise": float(val.noise)}
    change, model = lasting(config, 1.25 * (marks["best"] + 1) / (end + 1)), config["model"]["init_args"]
    for part, name in (("optimizer", "weight_decay"), ("network", "dropout")):
        if name in takes(model[part]) and (model[part]["init_args"].get(name) or 0) < KEPT[name] / 4:
            change = merge(change, {"model": {"init_args": {part: {"init_args": {name: KEPT[name]}}}}})
    yield Finding("overfits", BADLY, text, seen, rise / max(learned, rise) / (1 + mild), 0.9, change)


def lasting(config: Overlay, times: float) -> Overlay:
    """A run that is so many times as long."""
    ends = {name: config["trainer"].get(name) or -1 for name in ("max_epochs", "max_steps")}
    return {"trainer": {name: max(math.ceil(n * times), 1) for name, n in ends.items() if n > 0}}


def too_short(config: Overlay, train: Line, val: Line) -> Found:
    """Underfitting: much was learned in the second half, and validation is as good as training. The end of the curve
    does not tell, because schedules let the rate fall to 0."""
    line = train if train.size > 2 else val
    if line.size < 3:
        return
    many = line.size > 5
    middle, last = float((line.smooth if many else line.y)[(line.size - 1) // 2]), line.last if many else line.y[-1]
    first, noise = float(line.y[0]), line.noise if many else 0.0
    share = (middle - last) / max(first - last, 1e-12)
    close = not (train.size and val.size) or val.last - train.last < 0.2 * (first - last)
    if first > last and share > STILL and middle - last > 3 * noise and close:
        text = f"the run is too short: {share:.0%} of what was learned came in its second half"
        seen = {"first": first, "middle": middle, "last": float(last), "share": share}
        yield Finding("too_short", BADLY, text, seen, min(2 * share, 0.9), 0.8, lasting(config, 3))
