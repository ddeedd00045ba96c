"""What the record of a run says: how it ended, what its curves show, and where its time went."""

import math
import re
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np

from src.config.planned import of_micro
from src.config.request import Request, merge
from src.diagnosis.finding import BADLY, SPACE, Finding, Overlay, ranked
from src.diagnosis.rates import with_rates
from src.diagnosis.speed import overheads
from src.loggers.curves import Curve, read_curves
from src.run.errors import CheckpointError, NumericsError
from src.run.files import read_json
from src.run.folder import RunFolder, ending
from src.tuning.candidates import rates, takes

RISE, MILD, STILL = 0.1, 0.25, 0.12  # of what was learned: lost again, with or without accuracy; of the second half
NEEDED = {"train": "train/loss", "val": "val/loss", "acc": "val/acc", "moves": "optim/update_ratio"}


class Line:
    """A curve, finite values only: `smooth` is its running median of three, `noise` the deviation of one value, by the
    median difference of neighbours, which a trend does not move; `last` is the median of its last fifth."""

    def __init__(self, curve: Curve | None) -> None:
        x, y = curve or (np.zeros(0), np.zeros(0))
        self.x, self.y, self.size = x[np.isfinite(y)], y[np.isfinite(y)], int(np.isfinite(y).sum())
        self.smooth, apart = np.array([np.median(self.y[max(i - 1, 0) : i + 2]) for i in range(self.size)]), np.diff(y)
        self.noise = 1.05 * float(np.median(abs(apart - np.median(apart)))) if self.size > 5 else 0.0
        self.last = float(
            np.median(self.y[-max(self.size // 5, 3) :]) if self.size > 5 else [*self.y, 0][self.size - 1]
        )
        self.low = int(self.smooth.argmin()) if self.size else 0


def record(folder: RunFolder) -> tuple[list[Finding], dict[str, Any]]:
    """The findings; for pictures `curves`, `marks` (steps: `best`, `overfits`, `diverges`), `ledger`. Raises
    CheckpointError where there is no run, or it is damaged."""
    config, ended, marks = folder.config(), ending(folder), dict[str, float]()
    try:
        curves = read_curves(folder.path, ("train/", "val/", "optim/", "perf/"))
    except ValueError as e:
        raise CheckpointError(f"{folder.path}/metrics.csv: damaged: {e} -> train anew with another --run_dir") from e
    lines = {name: Line(curves.get(metric)) for name, metric in NEEDED.items()}
    found = [*ends(folder, config, ended)]
    if lines["train"].size > 4:
        found += of_training(config, lines, read_json(folder.path / "data_report.json").get("num_classes"), marks)
    if lines["val"].size > 5:
        found += overfitted(config, lines, marks)
    if ended["status"] == "finished" and not found:
        found += too_short(config, lines)
    size, micro = (config["data"]["init_args"].get(name) for name in ("batch_size", "micro_batch_size"))
    batches = ended.get("steps", 0) * (size / micro if size and micro else 1)
    found += overheads(ended.get("ledger") or {}, config, batches, lines["val"].size)
    told = {name: ended.get(name) for name in ("status", "steps", "best", "error", "ledger")}
    return ranked(found), {**told, "curves": curves, "marks": marks}


def ends(folder: RunFolder, config: Overlay, ended: dict[str, Any]) -> Iterator[Finding]:
    """How a run ended, where that was not at its end."""
    status, code, (what, _, todo) = (
        ended["status"],
        ended.get("exit_code"),
        str(ended.get("error", "")).partition(" -> "),
    )
    if status in ("finished", "training"):
        return
    name, change, size = (
        "run_failed" if status == "failed" else "not_finished",
        {},
        re.search(r"size (\d+) saves", todo),
    )
    if code == NumericsError.code:
        name, change = "not_finite", changed(config, 0.1)
    elif "out of memory" in what:
        name, change = "out_of_memory", of_micro(int(size[1])) if size else {}
    text, todo = what or f"the run is {status}", todo or f"again: {folder.state.get('command')}"
    seen, question = {"status": status, "exit_code": code}, SPACE if name == "out_of_memory" else BADLY
    yield Finding(name, question, text, seen, 1.0, 1.0, change, "" if change else todo, certain=True)


def changed(config: Overlay, rate: float = 0, length: float = 0) -> Overlay:
    """Learning rates so many times as high, and gradients clipped; or a run that is so many times as long."""
    ends = {name: config["trainer"].get(name) or -1 for name in ("max_epochs", "max_steps")}
    change = {name: max(math.ceil(n * length), 1) for name, n in ends.items() if n > 0 and length}
    given = rates(Request(config, {}, "", Namespace())) if rate else {}
    return merge(
        {"trainer": change or {"gradient_clip_val": 1.0}}, with_rates(config, {n: v * rate for n, v in given.items()})
    )


def of_training(
    config: Overlay, lines: dict[str, Line], classes: int | None, marks: dict[str, float]
) -> Iterator[Finding]:
    train, most = lines["train"], max(lines["moves"].y, default=math.nan)
    first, least, last, chance = (
        float(train.y[0]),
        float(min(train.smooth)),
        train.last,
        math.log(classes or math.e**99),
    )
    seen = {"first": first, "lowest": least, "last": last, "highest_update_ratio": most}
    flat = first - least < max(0.03 * abs(first), 3 * train.noise) or 0.97 * chance < last < 1.1 * chance
    if flat and not 1e-5 < most < 0.03:
        name, rate = ("lr_too_low", min(5e-3 / max(most, 1e-9), 1e4)) if most < 1e-5 else ("lr_too_high", 0.01)
        text = f"nothing is learned: a step changes the weights by up to {most:.1g} of their size"
        yield Finding(name, BADLY, text, seen, 0.9, 0.9, changed(config, rate), source="1e-3 is usual (Karpathy)")
    elif last - least > max(0.3 * (first - least), 4 * train.noise):
        marks["diverges"] = float(train.x[train.low])
        text = f"the training loss rises again from step {marks['diverges']:,.0f}, {least:.3g} to {last:.3g}"
        yield Finding("loss_diverges", BADLY, text, seen, 0.9, 0.9, changed(config, 0.3))


def overfitted(config: Overlay, lines: dict[str, Line], marks: dict[str, float]) -> Iterator[Finding]:
    """The validation loss has its minimum early and rises beyond noise, while that of training falls."""
    train, val, acc, model = lines["train"], lines["val"], lines["acc"], config["model"]["init_args"]
    marks["best"], end, least = float(val.x[val.low]), float(val.x[-1]), float(val.smooth[val.low])
    later, rise = train.y[train.x >= marks["best"]], val.last - least
    learned = max([float(val.y[0]), *train.y[:1]]) - least
    mild = acc.size > 5 and acc.last > max(acc.smooth) - max(2 * acc.noise, 0.01)  # as accurate as ever
    falls = len(later) < 6 or later[-3:].mean() < later[:3].mean()
    if marks["best"] > 0.8 * end or not falls or rise < max((MILD if mild else RISE) * learned, 4 * val.noise):
        return
    beyond = val.smooth[val.low :] > least + max(2 * val.noise, 0.1 * rise)
    marks["overfits"] = float(val.x[val.low + int(beyond.argmax())])
    text = f"it overfits from step {marks['overfits']:,.0f} of {end:,.0f}: validation {least:.3g} to {val.last:.3g}"
    change = changed(config, length=1.25 * (marks["best"] + 1) / (end + 1))
    for part, name, least_value, value in (("optimizer", "weight_decay", 0.01, 0.05), ("network", "dropout", 0.1, 0.3)):
        if name in takes(model[part]) and (model[part]["init_args"].get(name) or 0) < least_value:
            change = merge(change, {"model": {"init_args": {part: {"init_args": {name: value}}}}})
    seen = {"best_step": marks["best"], "lowest": least, "last": val.last, "noise": val.noise}
    yield Finding("overfits", BADLY, text, seen, rise / max(learned, rise) / (1 + mild), 0.9, change)


def too_short(config: Overlay, lines: dict[str, Line]) -> Iterator[Finding]:
    """Much was learned in the second half, and validation is as good as training. The very end does not tell, because
    schedules let the rate fall to 0."""
    train, val = lines["train"], lines["val"]
    line = train if train.size > 2 else val
    first, middle = (float(line.smooth[i]) for i in (0, (line.size - 1) // 2)) if line.size > 2 else (0.0, 0.0)
    share = (middle - line.last) / max(first - line.last, 1e-12)
    close = not (train.size and val.size) or val.last - train.last < 0.2 * (first - line.last)
    if first > line.last and share > STILL and middle - line.last > 3 * line.noise and close:
        text, seen = f"the run is too short: {share:.0%} of what was learned came in its second half", {"share": share}
        yield Finding("too_short", BADLY, text, seen, min(2 * share, 0.9), 0.8, changed(config, length=3))
