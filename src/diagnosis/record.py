"""What the record of a run says: how it ended, what its curves show, and where its time went."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from src.config.request import merge
from src.diagnosis.finding import BADLY, SPACE, Finding, Overlay, ranked
from src.diagnosis.speed import overheads
from src.loggers.curves import Curve, read_curves
from src.run.errors import CheckpointError, NumericsError
from src.run.folder import RunFolder, ending
from src.tuning.candidates import takes

RISE, MILD, STILL = 0.1, 0.25, 0.12  # of what was learned: lost again, with or without accuracy; of the second half


class Track:
    """A curve, its running median of three, the noise of a value (the spread of differences), and its last fifth."""

    def __init__(self, curve: Curve | None) -> None:
        x, y = curve or (np.zeros(0), np.zeros(0))
        self.x, self.y, self.size = x[np.isfinite(y)], y[np.isfinite(y)], int(np.isfinite(y).sum())
        self.smooth, apart = np.array([np.median(self.y[max(i - 1, 0) : i + 2]) for i in range(self.size)]), np.diff(y)
        self.noise = 1.05 * float(np.median(abs(apart - np.median(apart)))) if self.size > 5 else 0.0
        self.last = self.size and float(np.median(self.y[-max(self.size // 5, 3) if self.size > 5 else -1 :]))
        self.low = int(self.smooth.argmin()) if self.size else 0


def record(folder: RunFolder) -> tuple[list[Finding], dict[str, Any]]:
    """The findings; for pictures `curves`, `marks` (steps: `best`, `overfits`), `ledger`. Raises CheckpointError."""
    config, ended, marks = folder.config(), ending(folder), dict[str, float]()
    try:
        curves = read_curves(folder.path, ("train/", "val/", "optim/", "perf/"))
    except ValueError as e:
        raise CheckpointError(f"{folder.path}/metrics.csv: damaged: {e} -> train anew with another --run_dir") from e
    train, val, acc = (Track(curves.get(name)) for name in ("train/loss", "val/loss", "val/acc"))
    found = ends(folder, ended) if ended["status"] not in ("finished", "training") else []
    found += overfitted(config, train, val, acc, marks) if val.size > 5 else []
    found += too_short(config, train, val) if ended["status"] == "finished" and not found else []
    size, micro = (config["data"]["init_args"].get(name) for name in ("batch_size", "micro_batch_size"))
    batches = ended.get("steps", 0) * (size / micro if size and micro else 1)
    found += overheads(ended.get("ledger") or {}, config, batches, val.size)
    return ranked(found), {**ended, "curves": curves, "marks": marks}


def ends(folder: RunFolder, ended: dict[str, Any]) -> list[Finding]:
    status, code = ended["status"], ended.get("exit_code")
    what, _, todo = str(ended.get("error", "")).partition(" -> ")
    name = {NumericsError.code: "not_finite", None: "not_finished", 130: "not_finished", 143: "not_finished"}.get(code)
    name, question = ("out_of_memory", SPACE) if "out of memory" in what else (name or "run_failed", BADLY)
    text, again = what or f"the run is {status}", folder.state.get("command")
    todo = f"{todo or 'go on'}: {again}" if again else f"train anew: {folder.path} has no command to go on by"
    return [Finding(name, question, text, {"status": status, "exit_code": code}, 0.0, 1.0, todo=todo, certain=True)]


def of_length(trainer: dict[str, Any], times: float) -> Overlay:
    return {"trainer": {n: math.ceil(v * times) for n in ("max_epochs", "max_steps") if (v := trainer.get(n) or 0) > 0}}


def overfitted(config: Overlay, train: Track, val: Track, acc: Track, marks: dict[str, float]) -> Iterator[Finding]:
    best, end, least = float(val.x[val.low]), float(val.x[-1]), float(val.smooth[val.low])
    later, rise, marks["best"] = train.y[train.x >= best], val.last - least, best
    learned = max([float(val.y[0]), *train.y[:1]]) - least
    mild = acc.size > 5 and acc.last > max(acc.smooth) - max(2 * acc.noise, 0.01)  # as accurate as ever
    falls = len(later) < 6 or later[-3:].mean() < later[:3].mean()
    if best > 0.8 * end or not falls or rise < max((MILD if mild else RISE) * learned, 4 * val.noise):
        return
    beyond = val.smooth[val.low :] > least + max(2 * val.noise, 0.1 * rise)
    marks["overfits"] = begins = float(val.x[val.low + int(beyond.argmax())])
    text = f"it overfits from step {begins:,.0f} of {end:,.0f}: validation {least:.3g} to {val.last:.3g}"
    change, model = of_length(config["trainer"], 1.25 * (best + 1) / (end + 1)), config["model"]["init_args"]
    for part, name, low, value in (("optimizer", "weight_decay", 0.01, 0.05), ("network", "dropout", 0.1, 0.3)):
        if name in takes(model[part]) and (model[part]["init_args"].get(name) or 0) < low:
            change = merge(change, {"model": {"init_args": {part: {"init_args": {name: value}}}}})
    numbers = {"best_step": best, "lowest": least, "last": val.last, "noise": val.noise}
    yield Finding("overfits", BADLY, text, numbers, rise / max(learned, rise) / (1 + mild), 0.9, change)


def too_short(config: Overlay, train: Track, val: Track) -> Iterator[Finding]:
    """Much was learned in the second half, and validation is as good as training. The very end does not tell."""
    line = train if train.size > 2 else val
    first, middle = (float(line.smooth[i]) for i in (0, (line.size - 1) // 2)) if line.size > 2 else (0.0, 0.0)
    share = (middle - line.last) / max(first - line.last, 1e-12)
    close = not (train.size and val.size) or val.last - train.last < 0.2 * (first - line.last)
    if first > line.last and share > STILL and middle - line.last > 3 * line.noise and close:
        text, numbers = f"the run is too short: its second half gave {share:.0%} of what it learned", {"share": share}
        yield Finding("too_short", BADLY, text, numbers, min(2 * share, 0.9), 0.8, of_length(config["trainer"], 3))
