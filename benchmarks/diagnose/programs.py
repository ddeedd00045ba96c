"""A program of slips.py, trained as its author would, or asked of:

python -m benchmarks.diagnose.programs train NAME SEED FOLDER [CHANGE]
python -m benchmarks.diagnose.programs ask NAME MINUTES FOLDER
"""

import ast
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.diagnose.runs import Job, Line, digest


def job(key: str, args: Sequence[str], folder: Path, read: Any, about: Line, change: Any = None) -> Job:
    more = [json.dumps(change)] if change else []
    return Job(f"{key} {modules()}", "benchmarks.diagnose.programs", [*args, str(folder), *more], folder, read, about)


@cache
def modules() -> str:
    files = (Path(__file__).with_name(f"{name}.py") for name in ("modules", "slips", "others", "unseen"))
    return digest(*(ast.dump(ast.parse(file.read_text())) for file in files))


def trained(folder: Path, code: int) -> Line:
    file = folder / "trained.json"
    return json.loads(file.read_text()) if file.is_file() else {"metrics": {}, "fit_sec": 0.0}


def program_of(name: str) -> Any:
    from benchmarks.diagnose import others, slips, unseen

    return {**slips.PROGRAMS, **others.PROGRAMS, **unseen.PROGRAMS}[name]()


def train(name: str, seed: str, folder: str, change: str = "{}") -> None:
    """Nothing of src.diagnosis takes part, not even in what a change means."""
    import lightning.pytorch as pl

    pl.seed_everything(int(seed), verbose=False)
    program, overlay = program_of(name), json.loads(change)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = pl.Trainer(**quiet | program.trainer | overlay.pop("trainer", {}))
    apply(program.model, trainer, overlay)
    began = time.perf_counter()
    trainer.fit(program.model, **program.loaders)
    found: Line = {"fit_sec": round(time.perf_counter() - began, 2), "metrics": {}}
    own = {k.replace("val_dataloaders", "dataloaders"): v for k, v in program.loaders.items() if "train" not in k}
    sides = {
        "val": own or {"dataloaders": program.test},
        "test": {"dataloaders": program.test} if program.test else own,
    }
    for side, loaders in sides.items():
        numbers = trainer.validate(program.model, **loaders, verbose=False)[0]
        found["metrics"] |= {f"{side}/{k.removeprefix('val_')}": v for k, v in numbers.items()}
    (Path(folder) / "trained.json").write_text(json.dumps(found))


def apply(model: Any, trainer: Any, change: dict[str, Any]) -> None:
    """What an author would do to the code: each step at so many times the rate, whoever sets it, or at the first rate
    all the time; another number of all dropouts, norms and groups that have one; weights drawn anew; layers swapped."""
    import lightning.pytorch as pl
    from torch import nn

    times, constant = change.pop("lr_times", 1.0), "schedule" in change
    decay, of_model = change.pop("weight_decay", None), change.pop("model", {}).get("init_args", {})
    numbers = {"p": change.pop("dropout", None), "momentum": change.pop("norm_momentum", None)}
    change.pop("schedule", None)
    if change or of_model.keys() - {"reset", "swap"}:
        raise ValueError(f"what is {change or of_model}?")
    for name, module in [*model.named_modules()]:
        for key, value in numbers.items():
            if value is not None and hasattr(module, key):
                setattr(module, key, min(getattr(module, key), value))
        if of_model.get("reset") and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        for end in (end for end in of_model.get("swap", {}) if name == end or name.endswith(f".{end}")):
            new = getattr(nn, of_model["swap"][end]["class_path"].rpartition(".")[2])()
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)

    class Changed(pl.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            for optimizer in trainer.optimizers:
                first = [group["lr"] for group in optimizer.param_groups]
                optimizer.register_step_pre_hook(lambda opt, *_, first=first: self.rates(opt, first, times))
                optimizer.register_step_post_hook(lambda opt, *_: self.rates(opt, (), 1 / times))
                for group in optimizer.param_groups:
                    group["weight_decay"] = group.get("weight_decay", 0) if decay is None else decay

        def rates(self, optimizer: Any, first: Any, by: float) -> None:
            for number, group in enumerate(optimizer.param_groups):
                group["lr"] = by * (first[number] if constant and first else group["lr"])

    trainer.callbacks += [Changed()] if times != 1 or constant or decay is not None else []


def ask(name: str, minutes: str, folder: str) -> None:
    import lightning.pytorch as pl

    from src.diagnose import diagnose

    pl.seed_everything(0, verbose=False)
    program = program_of(name)
    found = diagnose(program.model, minutes=float(minutes), trainer=program.trainer, **program.loaders)
    said = {"verdict": found.verdict, "findings": [asdict(one) for one in found.findings], "unknown": found.unknown}
    (Path(folder) / "found.json").write_text(json.dumps(said, default=str))


def main(args: Sequence[str]) -> int:
    {"train": train, "ask": ask}[args[0]](*args[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
