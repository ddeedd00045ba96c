"""What the record of a run says: how it ended, what its curves show, and where its time went."""

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from src.config.request import merge
from src.diagnosis.finding import BADLY, SPACE, Finding, Overlay, ranked
from src.diagnosis.space import leaking
from src.diagnosis.speed import overheads
from src.loggers.curves import Curve, read_curves
from src.run.errors import NumericsError
from src.run.files import read_json
from src.run.folder import RunFolder, ending
from src.tuning.candidates import takes

KINDS = ("train/", "val/", "optim/", "perf/", "memory/")
RISE, MILD = 0.1, 0.25  # of all that was learned, that is lost again; where the accuracy did not fall
STILL = 0.12  # of all that was learned, in the second half of a run: it was too short
SCALE_FREE = re.compile("Adam|Ada|RMSprop|Lion|Muon|NAdam|LBFGS")  # whose steps do not depend on the gradient's norm
Found = Iterator[Finding]


class Line:
    """A curve in short: `smooth` is the running median of three; the curve itself where it is shorter.

    `noise` is the standard deviation of one value, by the median difference of neighbours, which outliers and a trend do
    not move."""

    def __init__(self, curve: Curve | None) -> None:
        self.steps, self.values = curve or (np.zeros(0), np.zeros(0))
        finite = np.isfinite(self.values)
        self.steps, self.values = self.steps[finite], self.values[finite]
        self.size = len(self.values)
        padded = np.pad(self.values, 1, mode="edge") if self.size else self.values
        self.smooth = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0) if self.size > 2 else self.values
        apart = np.diff(self.values)
        self.noise = 1.05 * float(np.median(abs(apart - np.median(apart)))) if self.size > 2 else 0.0

    def part(self, begin: float, end: float) -> np.ndarray:
        """The values of a share of the run, at least one."""
        first = min(int(begin * self.size), self.size - 1)
        return self.values[first : max(math.ceil(end * self.size), first + 1)]

    @property
    def last(self) -> float:
        return float(np.median(self.part(min(0.8, 1 - 3 / self.size), 1)))


def record(folder: RunFolder) -> tuple[list[Finding], dict[str, Any]]:
    """At most three findings, and `curves`, `marks` (steps: `best`, `overfits`, `diverges`), `ledger` for the report.

    Raises:
        CheckpointError: there is no run, or its config is damaged.
    """
    config, ended = folder.config(), ending(folder)
    found, marks = list(ends(folder, config, ended)), dict[str, float]()
    try:
        curves = read_curves(folder.path, KINDS)
    except ValueError as e:
        curves, text = {}, f"metrics.csv is damaged ({e})"
        found.append(Finding("damaged_record", BADLY, text, confidence=1.0, todo="train anew with another --run_dir"))
    train, val = Line(curves.get("train/loss")), Line(curves.get("val/loss"))
    if train.size > 2 or val.size > 2:
        found += [*of_training(config, train, curves, marks), *of_validation(config, train, val, curves, marks)]
        found += list(too_short(config, train, val, found)) if ended["status"] == "finished" else []
    checks = sum(name == "val/loss" for name in curves) and val.size
    found += [*overheads(ended.get("ledger") or {}, config, checks), *leaking(curves)]
    told = {name: ended.get(name) for name in ("status", "steps", "best", "error", "ledger")}
    return ranked(found), {**told, "curves": curves, "marks": marks}


def ends(folder: RunFolder, config: Overlay, ended: dict[str, Any]) -> Found:
    """How a run ended, where that was not at its end."""
    status, error = ended["status"], str(ended.get("error") or "")
    what, _, todo = error.partition(" -> ")
    sure: Any = {"confidence": 1.0, "certain": True, "evidence": {"exit_code": ended.get("exit_code"), "status": status}}
    if (folder.path / "summary.json").exists() and not folder.summary:
        yield Finding("damaged_record", BADLY, "summary.json is damaged", **sure, todo="look at metrics.csv")
    elif status == "failed" and ended.get("exit_code") == NumericsError.code:
        change = merge(rates(config, 0.1), {"trainer": {"gradient_clip_val": 1.0}})
        yield Finding("not_finite", BADLY, what, gain=1.0, change=change, **sure)
    elif status == "failed" and what.startswith("out of memory"):
        size = re.search(r"micro_batch_size (\d+)", todo)
        change = {"data": {"init_args": {"micro_batch_size": int(size[1])}}} if size else {}
        yield Finding("out_of_memory", SPACE, what, gain=1.0, change=change, todo="" if change else todo, **sure)
    elif status == "failed":
        yield Finding("run_failed", BADLY, what or "it failed without a word", gain=1.0, todo=todo or "--debug", **sure)
    elif status in ("stopped", "cut short"):
        text = f"the run is not finished: {what or status} after {ended.get('steps', 0):,} steps"
        yield Finding("not_finished", BADLY, text, gain=0.5, **sure, todo=f"again: {folder.state.get('command')}")


def of_training(config: Overlay, train: Line, curves: dict[str, Curve], marks: dict[str, float]) -> Found:
    ratio, norm = Line(curves.get("optim/update_ratio")), Line(curves.get("optim/grad_norm"))
    if train.size < 5:
        return
    low = int(train.smooth.argmin())
    learned, back = float(train.values[0] - train.smooth[low]), train.last - float(train.smooth[low])
    update = float(np.median(ratio.values)) if ratio.size else math.nan
    seen = {"first": float(train.values[0]), "lowest": float(train.smooth[low]), "last": train.last}
    seen |= {"update_ratio": update}
    flat = learned < max(0.03 * abs(seen["first"]), 3 * train.noise)
    if (flat and back > -3 * train.noise) and (update < 1e-5 or update > 0.1):
        name, how = ("lr_too_low", "hardly move") if update < 1e-5 else ("lr_too_high", "jump about")
        text = f"nothing is learned: the weights {how}, a median of {update:.1g} of their size at a step"
        change = rates(config, min(max(3e-3 / max(update, 1e-9), 1e-4), 1e4))
        yield Finding(name, BADLY, text, seen, 0.9, 0.9, change, source="update ratio about 1e-3 (Karpathy)")
    elif back > max(0.3 * abs(learned), 4 * train.noise):
        marks["diverges"] = float(train.steps[low])
        text = f"the training loss rises again from step {marks['diverges']:,.0f}: {seen['lowest']:.3g} to {train.last:.3g}"
        change = merge(rates(config, 0.3), {"trainer": {"gradient_clip_val": 1.0}})
        yield Finding("loss_diverges", BADLY, text, seen, min(back / max(learned, 1e-9), 1.0), 0.9, change)
    elif (spikes := spiking(train, learned)) > max(2, 0.02 * train.size):
        clip = float(f"{np.quantile(norm.values, 0.9):.2g}") if norm.size else 1.0
        change = merge(rates(config, 0.5), {"trainer": {"gradient_clip_val": clip}})
        text = f"the training loss has {spikes} spikes, each more than 6 standard deviations high"
        yield Finding("loss_spikes", BADLY, text, {**seen, "spikes": spikes}, 0.2, 0.6, change, source="OLMo-core")
    yield from clipped(config, norm)


def spiking(train: Line, learned: float) -> int:
    """Values far above their neighbours, after the first tenth."""
    around = np.array([np.median(train.values[max(i - 4, 0) : i + 5]) for i in range(train.size)])
    above = (train.values - around)[train.size // 10 :]
    return int((above > max(6 * train.noise, 0.1 * learned)).sum())


def clipped(config: Overlay, norm: Line) -> Found:
    clip, optimizer = config["trainer"].get("gradient_clip_val"), config["model"]["init_args"]["optimizer"]["class_path"]
    if not clip or not norm.size or SCALE_FREE.search(optimizer):
        return
    typical = float(np.median(norm.values))
    if typical > 5 * clip:
        text = f"gradients are cut to {clip:g}, but half of them are above {typical:.2g}: most of each step is lost"
        change = {"trainer": {"gradient_clip_val": float(f"{np.quantile(norm.values, 0.9):.2g}")}}
        yield Finding("clips_too_much", BADLY, text, {"clip": clip, "median_norm": typical}, 0.4, 0.7, change)


def of_validation(
    config: Overlay, train: Line, val: Line, curves: dict[str, Curve], marks: dict[str, float]
) -> Found:
    """Overfitting: the validation loss has its minimum early and rises beyond noise, while that of training falls."""
    if val.size < 6:
        return
    low, end = int(val.smooth.argmin()), float(val.steps[-1])
    marks["best"] = float(val.steps[low])
    start = max([float(val.values[0]), *train.values[:1]])
    learned, rise = start - float(val.smooth[low]), val.last - float(val.smooth[low])
    later = train.values[train.steps >= val.steps[low]]
    falls = len(later) < 3 or later[-3:].mean() < later[:3].mean()
    acc = Line(curves.get("val/acc"))
    mild = acc.size == val.size and acc.last > float(acc.smooth.max()) - max(2 * acc.noise, 0.01)
    if val.steps[low] > 0.8 * end or not falls or rise < max((MILD if mild else RISE) * learned, 4 * val.noise):
        return
    beyond = np.flatnonzero(val.smooth[low:] > val.smooth[low] + max(2 * val.noise, 0.1 * rise))
    marks["overfits"] = float(val.steps[low + int(beyond[0])])
    text = f"it overfits from step {marks['overfits']:,.0f} of {end:,.0f}: the validation loss rises from"
    text += f" {val.smooth[low]:.3g} to {val.last:.3g}" + (", its accuracy stays" if mild else "")
    seen = {"best_step": marks["best"], "lowest": float(val.smooth[low]), "last": val.last, "noise": val.noise}
    gain = min(rise / max(learned, rise), 1.0) * (0.5 if mild else 1.0)
    yield Finding("overfits", BADLY, text, seen, gain, 0.9, less_fitted(config, (marks["best"] + 1) / (end + 1)))


def less_fitted(config: Overlay, share: float) -> Overlay:
    """Trained about as long as it got better, with regularisation where there is none."""
    given, model = config["trainer"], config["model"]["init_args"]
    change = lasting(given, 1.25 * share)
    spec, network = model["optimizer"], model["network"]
    if "weight_decay" in takes(spec) and (spec["init_args"].get("weight_decay") or 0) < 0.01:
        merged = {"optimizer": {"init_args": {"weight_decay": 0.05}}}
        change = merge(change, {"model": {"init_args": merged}})
    if "dropout" in takes(network) and (network["init_args"].get("dropout") or 0) < 0.1:
        change = merge(change, {"model": {"init_args": {"network": {"init_args": {"dropout": 0.3}}}}})
    return change


def lasting(trainer: dict[str, Any], times: float) -> Overlay:
    """A run that is so many times as long."""
    ends = {name: trainer[name] for name in ("max_epochs", "max_steps") if (trainer.get(name) or -1) > 0}
    return {"trainer": {name: max(math.ceil(n * times), 1) for name, n in ends.items()}}


def too_short(config: Overlay, train: Line, val: Line, found: list[Finding]) -> Found:
    """Underfitting: much of what was learned came in the second half, and validation is as good as training. The end of
    the curve does not tell, because schedules let the rate fall to 0."""
    line = train if train.size > 5 else val
    if line.size < 3 or any(one.question == BADLY for one in found):
        return
    first, middle, last = float(line.values[0]), float(np.mean(line.part(0.4, 0.6))), float(np.mean(line.part(0.8, 1)))
    share, several = (middle - last) / max(first - last, 1e-12), line.size > 5
    error = line.noise * math.sqrt(2 / max(0.2 * line.size, 1))
    close = not (train.size and val.size) or val.last - train.last < 0.2 * (first - last)
    if share > (STILL if several else 2 * STILL) and middle - last > 2 * error and close and first > last:
        text = f"the run is too short: {share:.0%} of what was learned came in its second half"
        seen = {"first": first, "middle": middle, "last": last, "share": share}
        yield Finding("too_short", BADLY, text, seen, min(2 * share, 0.9), 0.8, lasting(config["trainer"], 3))


def rates(config: Overlay, times: float) -> Overlay:
    """All learning rates, so many times as high."""
    model = copy.deepcopy(config["model"]["init_args"])
    change: Overlay = {}
    for part in ("optimizer", "schedule"):
        given = (model.get(part) or {}).get("init_args") or {}
        names = [n for n, v in given.items() if (n in ("lr", "max_lr") or n.endswith("_lr")) and isinstance(v, float)]
        if names:
            change[part] = {"init_args": {name: float(f"{given[name] * times:.2g}") for name in names}}
    return {"model": {"init_args": change}}
