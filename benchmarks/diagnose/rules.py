"""What others' rules say of the same cases, with the thresholds of their sources: Amazon SageMaker Debugger's built-in
rules, UMLAUT (Schoop et al., CHI 2021), AutoTrainer (Zhang et al., ICSE 2021), DeepLocalize (Wardat et al., ICSE 2021),
and what Lightning warns of. One training of at most `STEPS` steps, looked at every `EVERY`, answers for all of them."""

import json
import math
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from benchmarks.diagnose.cases import Case, written
from benchmarks.diagnose.runs import Job, Line, Lines, config_digest, digest

STEPS, EVERY = 400, 10
HARMLESS = ("litlogger", "srun", "GPU available", "`isinstance(treespec")  # what Lightning says of the machine
RATES = {"rate too high", "weights at the start", "scale", "scale, end, rate", "two at once"}
DEAD = {"weights at the start", "rate too high", "regularization"}
WEAK = {"rate too low", "vanishing gradients", "not trained", "weights at the start", "clipping", "schedule", "batch"}
STUCK = {*RATES, *WEAK, "labels", "ignores its input", "end of the network", "regularization", "capacity", "too short"}
GAP = {"overfitting", "labels", "leak", "shift", "copies", "order", "mode"}
END = {"end of the network", "two at once", "scale, end, rate"}
# For which families a rule's answer is right.
RIGHT: dict[str, set[str]] = {
    "sagemaker vanishing": {"vanishing gradients", "not trained", "ignores its input", "weights at the start"},
    "sagemaker exploding": RATES,
    "sagemaker dead relu": DEAD,
    "sagemaker saturated": {"weights at the start"},
    "sagemaker update ratio": RATES | WEAK,
    "sagemaker poor weights": {"weights at the start", "vanishing gradients"},
    "sagemaker loss not decreasing": STUCK,
    "sagemaker overfit": GAP,
    "sagemaker overtraining": {"overfitting"},
    "sagemaker imbalance": {"imbalance"},
    "sagemaker unchanged": {"not trained"},
    "sagemaker input": {"scale", "scale, end, rate"},
    "umlaut input": {"scale", "scale, end, rate"},
    "umlaut rate high": RATES,
    "umlaut rate low": {"rate too low"},
    "umlaut overfitting": GAP,
    "umlaut too good": {"leak", "mode"},
    "umlaut last activation": END,
    "umlaut dropout": {"regularization"},
    "autotrainer vanishing": {"vanishing gradients", "not trained", "ignores its input"},
    "autotrainer exploding": RATES,
    "autotrainer dying relu": DEAD,
    "autotrainer oscillating": RATES,
    "autotrainer slow": WEAK,
    "autotrainer not converged": STUCK,
    "autotrainer gap": GAP,
    "deeplocalize dead": DEAD,
    "deeplocalize saturated": {"weights at the start", "vanishing gradients"},
    "deeplocalize gradient": {"vanishing gradients", "not trained", "ignores its input", "weights at the start"},
    "deeplocalize variance": {"weights at the start", "scale"},
    "deeplocalize rate": RATES | {"rate too low"},
    "deeplocalize not finite": RATES,
    "lightning warnings": {"data", "batch", "logging"},
}


class Signals(Callback):
    """All numbers that the rules ask for, taken at every tenth step."""

    def __init__(self) -> None:
        self.losses, self.accs = list[float](), list[float]()
        self.val = list[dict[str, float]]()
        self.rows = list[dict[str, Any]]()  # one for each look
        self.now: dict[str, Any] | None = None
        self.before: list[Tensor] = []

    def on_train_start(self, trainer: Any, model: Any) -> None:
        train = trainer.datamodule.splits["train"]
        targets = getattr(train, "targets", None)
        counts = torch.bincount(targets) if targets is not None and not targets.is_floating_point() else None
        self.imbalance = float(counts.max() / counts.clamp(min=1).min()) if counts is not None else 1.0
        self.modules = [m for m in model.network.modules() if not [*m.children()]]
        self.dropout = max([m.p for m in self.modules if isinstance(m, nn.Dropout)], default=0.0)
        ends = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softmax)
        self.active_end = bool(self.modules) and isinstance(self.modules[-1], ends)
        for module in self.modules:
            module.register_forward_hook(self.look)
        model.network.register_forward_pre_hook(self.see)

    def see(self, network: nn.Module, inputs: Any) -> None:
        if self.now is not None and inputs[0].is_floating_point():
            self.now["input"] = [float(f(inputs[0])) for f in (torch.min, torch.max, torch.mean)]

    def look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.now is None or not isinstance(output, Tensor):
            return
        if isinstance(module, nn.ReLU):
            units = output.transpose(1, -1).flatten(0, -2) if output.ndim > 2 else output
            self.now["dead_units"].append(float(((units > 0).float().mean(0) < 0.01).float().mean()))
            self.now["dead"].append(float((output <= 0).float().mean()))
        if isinstance(module, (nn.Tanh, nn.Sigmoid)):
            self.now["saturated"].append(float((inputs[0].abs() > 5).float().mean()))
            self.now["ends"].append(float((inputs[0].abs() > 9.4999).float().mean()))
        if output.is_floating_point():
            self.now["variances"].append(float(output.float().var()))
            self.now["finite"] &= bool(output.isfinite().all())

    def on_train_batch_start(self, trainer: Any, model: Any, *_: Any) -> None:
        if trainer.global_step % EVERY == 0:
            self.now = {name: [] for name in ("dead_units", "dead", "saturated", "ends", "variances")}
            self.now |= {"finite": True}

    def on_before_optimizer_step(self, trainer: Any, model: Any, optimizer: Any) -> None:
        if self.now is None:
            return
        named = [(n, p) for n, p in model.network.named_parameters() if p.grad is not None]
        self.before = [p.detach().clone() for p in model.network.parameters()]
        self.now["gradients"] = [float(p.grad.abs().mean()) for _, p in named]
        self.now["norms"] = [float(p.grad.norm()) for n, p in named if p.ndim > 1]
        self.now["zeros"] = [float((p.grad == 0).float().mean()) for n, p in named if p.ndim > 1]
        widths = [
            p.grad.float().flatten()[:100_000].quantile(torch.tensor([0.05, 0.95])) for n, p in named if p.ndim > 1
        ]
        self.now["widths"] = [float(q[1] - q[0]) for q in widths]
        self.now["weight_variances"] = [float(p.var()) for n, p in named if p.ndim > 1]
        self.now["finite"] &= all(math.isfinite(g) for g in self.now["gradients"])

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.losses.append(float(loss))
        if self.now is not None and self.before:
            after = [*model.network.parameters()]
            pairs = [(a, b) for a, b in zip(after, self.before, strict=True) if a.ndim > 1]
            self.now["updates"] = [float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs]
            self.now["unchanged"] = [bool(torch.allclose(a, b, rtol=1e-5, atol=1e-8)) for a, b in pairs]
            self.now["rate"] = trainer.optimizers[0].param_groups[0]["lr"]
            self.rows.append(self.now)
        self.now, self.before = None, []

    def on_validation_end(self, trainer: Any, model: Any) -> None:
        if not trainer.sanity_checking:
            found = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "epoch"}
            self.val.append(found | {"train": statistics.mean(self.losses[-20:]) if self.losses else math.nan})


def rows_with(rows: Sequence[dict[str, Any]], name: str, least: float, share: float = 0.0) -> bool:
    """Whether some value of a row, or more than a share of them, is above `least`."""
    return any(sum(v > least for v in row[name]) > share * len(row[name]) for row in rows if row[name])


def fired(s: Signals) -> set[str]:
    """The names of the rules that fire at least once."""
    rows, end = s.rows, s.val[-1] if s.val else {}
    val, train = [v.get("val/loss", math.nan) for v in s.val], [v["train"] for v in s.val]
    accs = [v["val/acc"] for v in s.val if "val/acc" in v]
    own, gap = end.get("train/acc", math.nan), end.get("train/acc", math.nan) - end.get("val/acc", math.nan)
    inputs = [row["input"] for row in rows if "input" in row]
    rate = max((row["rate"] for row in rows), default=math.nan)
    ratios = [row["norms"][0] / max(row["norms"][-1], 1e-30) for row in rows if len(row["norms"]) > 1]
    falling = [statistics.mean(part) for part in chunks(s.losses[::EVERY], 10)]
    poor = [max(v) / max(min(v), 1e-30) for row in rows[:1] if (v := row["weight_variances"])]
    swings = [abs(a - b) >= 0.03 for a, b in pairwise(accs)]
    still = [all(flags) for flags in zip(*(row["unchanged"] for row in rows[:3]), strict=True)]
    finite = all(row["finite"] for row in rows) and all(map(math.isfinite, s.losses))
    tests = {
        "sagemaker vanishing": any(g < 1e-7 for row in rows for g in row["gradients"]),
        "sagemaker exploding": not finite,
        "sagemaker dead relu": rows_with(rows, "dead_units", 0.5),
        "sagemaker saturated": rows_with(rows, "ends", 0.5),
        "sagemaker update ratio": any(u > 10 or u < 1e-8 for row in rows for u in row["updates"]),
        "sagemaker poor weights": any(p > 10 for p in poor)
        or any(min(r["widths"], default=1) < 1e-3 for r in rows[:10]),
        "sagemaker loss not decreasing": any(b > 0.999 * a for a, b in pairwise(falling)),
        "sagemaker overfit": any((v - t) / max(abs(t), 1e-9) > 0.1 for v, t in zip(val, train, strict=True)),
        "sagemaker overtraining": len(val) > 5 and min(val[:-5]) <= min(val[-5:]) + 0.01,
        "sagemaker imbalance": s.imbalance > 10,
        "sagemaker unchanged": any(still),
        "sagemaker input": any(abs(mean) > 0.2 for _, _, mean in inputs),
        "umlaut input": any(low < -1 or high > 1 for low, high, _ in inputs),
        "umlaut rate high": rate > 0.01,
        "umlaut rate low": rate < 1e-7,
        "umlaut overfitting": any(val[i] > val[i - 1] and train[i] < train[i - 1] for i in range(1, len(val))),
        "umlaut too good": any(a > 0.95 for a in accs[3:]) or (len(accs) > 3 and accs[-1] > own + 0.05),
        "umlaut last activation": s.active_end,
        "umlaut dropout": s.dropout > 0.5,
        "autotrainer vanishing": any(r < 1e-3 and row["norms"][0] < 1e-4 for r, row in zip(ratios, rows, strict=False)),
        "autotrainer exploding": any(r > 70 for r in ratios) or any(loss >= 1000 for loss in s.losses) or not finite,
        "autotrainer dying relu": rows_with(rows, "zeros", 0.7),
        "autotrainer oscillating": bool(swings) and statistics.mean(swings) >= 0.2,
        "autotrainer slow": len(accs) > 1 and max(accs) - accs[0] < 0.01,
        "autotrainer not converged": bool(accs) and max(accs) < 0.6,
        "autotrainer gap": gap >= (0.07 if own > 0.9 else 0.1),
        "deeplocalize dead": rows_with(rows, "dead", 0.7),
        "deeplocalize saturated": rows_with(rows, "saturated", 0.5),
        "deeplocalize gradient": any(g < 1e-7 for row in rows for g in row["gradients"]),
        "deeplocalize variance": any(not 1e-5 <= v <= 10 for row in rows for v in row["variances"]),
        "deeplocalize rate": not 1e-5 <= rate <= 0.1,
        "deeplocalize not finite": not finite,
    }
    return {name for name, answer in tests.items() if answer}


def chunks(values: list[float], size: int) -> list[list[float]]:
    return [values[i : i + size] for i in range(0, len(values) - size + 1, size)]


def main(args: Sequence[str]) -> int:
    """A config's file, and where to write what fires."""
    from benchmarks.in_process import built

    file, out = args
    signals = Signals()
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
        experiment = built(["--config", file, "--checkpoints.every_sec", "1e9"], folder, signals)
        warnings.simplefilter("always")
        trainer = experiment.trainer
        trainer.fit_loop.epoch_loop.max_steps = min(STEPS, s) if (s := trainer.max_steps) > 0 else STEPS
        error = ""
        try:
            trainer.fit(experiment.model, datamodule=experiment.datamodule)
        except (Exception, SystemExit) as e:
            error = f"{type(e).__name__}: {e}"[:200]
    told = {str(w.message) for w in caught if "lightning" in w.filename}
    told = {text for text in told if not any(word in text for word in HARMLESS)}
    names = fired(signals) | ({"lightning warnings"} if told else set())
    Path(out).write_text(json.dumps({"fired": sorted(names), "told": sorted(told), "error": error}))
    return 0


def job(case: Case, out: Path) -> Job:
    file, folder = written(case, out / "configs"), out / "runs" / f"rules_{case.name}"
    key = f"rules {case.name} {digest(config_digest(file), Path(__file__).read_text())}"
    return Job(
        key, "benchmarks.diagnose.rules", [str(file), str(folder / "fired.json")], folder, read, {"case": case.name}
    )


def read(folder: Path, code: int) -> Line:
    file = folder / "fired.json"
    return json.loads(file.read_text()) if file.is_file() else {"fired": []}


def table(cases: Iterable[Case], out: Path, lines: Lines) -> str:
    """By source, and by rule: of how many healthy runs and of how many faults it fires, and is right."""
    asked = [(case, {*lines.known[key]["fired"]}) for case in cases if (key := job(case, out).key) in lines.known]
    faults, healthy = [a for a in asked if not a[0].healthy], [a for a in asked if a[0].healthy]
    rows = ["| rules | fire on healthy runs | fire on faults | on faults that they are for |", "|---|---|---|---|"]
    sources = dict.fromkeys(name.split()[0] for name in RIGHT)
    for shown, names in [(f"**{s}, any**", {n for n in RIGHT if n.startswith(s)}) for s in sources] + [
        (name, {name}) for name in RIGHT
    ]:
        alarms = sum(bool(names & said) for _, said in healthy)
        found = sum(bool(names & said) for _, said in faults)
        right = sum(any(case.family in RIGHT[n] for n in names & said) for case, said in faults)
        rows.append(f"| {shown} | {alarms} of {len(healthy)} | {found} of {len(faults)} | {right} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
