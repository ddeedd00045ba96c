"""Ways to kill a run from inside, and what must be equal at the end of two runs."""

import csv
import io
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from src.run import checkpoint, files

TINY = ["--config", "tests/faults/tiny.yaml"]
IMAGES = ["--config", "tests/data/images/tiny.yaml"]  # kind: images
SERIES = ["--config", "tests/data/series/tiny.yaml"]  # kind: series
EVERY_STEP = ["--checkpoints.every_n_steps", 1]
SELDOM = ["--checkpoints.every_sec", 1000]  # only where the run gets better, and at its end
STEPS = 12
SHORT = ["--trainer.limit_val_batches", 2, "--trainer.limit_test_batches", 2, "--trainer.log_every_n_steps", 3]
SHORT += ["--pictures.enabled", "false"]
EPOCHS = [*SHORT, "--trainer.max_epochs", 3, "--trainer.limit_train_batches", 4]
# Networks and settings of every kind, each a run of 12 steps.
SETTINGS: dict[str, list] = {
    "mlp": [*TINY, *EVERY_STEP],
    # kind: images
    "images": [*IMAGES, *EVERY_STEP],
    "cnn": [
        *["--config", "configs/experiment/digits_cnn.yaml", *EPOCHS, *EVERY_STEP, "--data.batch_size", 32],
        *["--model.network.widths", "[4,4]", "--model.network.hidden", 8],
    ],
    "lstm": [
        *["--config", "configs/experiment/digits_lstm.yaml", *EPOCHS, *EVERY_STEP, "--trainer.limit_train_batches", 8],
        *["--data.batch_size", 16, "--data.micro_batch_size", 8, "--model.network.dim", 8, "--data.num_workers", 1],
    ],
    "vit": [
        *["--config", "configs/experiment/digits_vit.yaml", *EPOCHS, *SELDOM, "--trainer.precision", "auto"],
        *["--data.batch_size", 16, "--model.network.dim", 16, "--model.network.depth", 1],
    ],
    # end
    # kind: text
    "gpt": [
        *["--config", "configs/experiment/text_gpt.yaml", *SHORT, "--checkpoints.every_n_steps", 3],
        *["--trainer.max_steps", 12, "--trainer.val_check_interval", 4, "--data.batch_size", 4, "--data.seq_len", 16],
        *["--model.network.dim", 12, "--model.network.depth", 1],
    ],
    # end
    # kind: tables
    "table_mlp": [
        *["--config", "configs/experiment/diabetes_mlp.yaml", *EPOCHS, *EVERY_STEP, "--data.batch_size", 16],
        *["--model.network.dim", 8, "--model.network.num_frequencies", 4, "--model.loss", "quantile"],
    ],
    # end
    "series": [*SERIES, *SELDOM],  # kind: series
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(owner: Any, name: str, number: int, act: Callable[[], None] = die) -> Callable[[], None]:
    """A hook for `start`: act before call `number`, from 1, of `owner.name`."""

    def first() -> None:
        function, calls = getattr(owner, name), [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                act()
            return function(*args, **kwargs)

        setattr(owner, name, counted)

    return first


def before_change(number: int) -> Callable[[], None]:
    """A hook: die before the `number`-th change to the file system, of whatever kind."""

    def first() -> None:
        calls = [0]

        def watch(owner: Any, name: str) -> None:
            function = getattr(owner, name)

            def counted(*args: Any, **kwargs: Any) -> Any:
                calls[0] += 1
                if calls[0] == number:
                    die()
                return function(*args, **kwargs)

            setattr(owner, name, counted)

        for owner, name in ((os, "fsync"), *((Path, n) for n in ("rename", "unlink", "symlink_to", "mkdir"))):
            watch(owner, name)

    return first


def in_write(number: int, share: float = 0.5) -> Callable[[], None]:
    """A hook: die while the `number`-th checkpoint is written, when this share of its bytes is on the disk."""

    def first() -> None:
        sha256, calls = checkpoint.hashlib.sha256, [0]

        def hashed(data: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                files.open = partial(dying_open, share)
            return sha256(data)

        checkpoint.hashlib = SimpleNamespace(sha256=hashed, file_digest=checkpoint.hashlib.file_digest)

    return first


def dying_open(share: float, path: Path, mode: str) -> Any:
    return Dying(path, share) if path.parent.name == "checkpoints" else open(path, mode)


class Dying(io.FileIO):
    def __init__(self, path: Path, share: float) -> None:
        super().__init__(path, "w")
        self.share = share

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: int(len(data) * self.share)])
        os.fsync(self.fileno())
        die()
        return 0


def together(*hooks: Callable[[], None]) -> Callable[[], None]:
    return lambda: [hook() for hook in hooks]  # type: ignore[return-value]


def noting_samples(file: Path) -> Callable[[], None]:
    """A hook: write down which samples each micro-batch takes, and what the network is given."""

    def first() -> None:
        step = Strategy.training_step  # of whatever model

        def noted(self: Any, batch: Any, batch_idx: int) -> Any:
            number = self.lightning_module.trainer.fit_loop.total_batch_idx
            line = [number, batch["index"].tolist(), float(batch["x"].double().sum())]
            with open(file, "a") as f:
                f.write(json.dumps(line) + "\n")
            return step(self, batch, batch_idx)

        Strategy.training_step = noted

    return first


def samples(file: Path) -> dict[int, list]:
    """Samples of each micro-batch; all lives of a run must agree on them."""
    out: dict[int, list] = {}
    for number, *what in map(json.loads, file.read_text().splitlines()):
        assert out.setdefault(number, what) == what, f"micro-batch {number} was not the same again"
    return out


def ending(run_dir: Path) -> dict[str, Any]:
    """All that must be equal, bit for bit."""
    summary = json.loads((run_dir / "summary.json").read_text())
    kept = {k: v for k, v in summary.items() if k not in ("seconds", "ledger", "first_step")}
    saved = {name: torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last")}
    return plain({"rows": rows(run_dir), "summary": kept, **saved})


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv") as f:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(f)]


def plain(data: Any) -> Any:
    """Tensors as their bytes, so that == says whether all bits are the same."""
    if isinstance(data, torch.Tensor):
        return str(data.dtype), tuple(data.shape), data.contiguous().numpy().tobytes()
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return data


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in {**a, **b} for d in differences(a.get(key), b.get(key), f"{path}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {str(a)[:80]} != {str(b)[:80]}"]


def assert_same_end(run_dir: Path, reference: Path) -> None:
    found = differences(ending(run_dir), ending(reference))
    assert not found, "\n".join(found)


def assert_sound(run_dir: Path) -> None:
    """What holds at any moment: whoever has a manifest is whole, and the links lead to a checkpoint."""
    folder = run_dir / "checkpoints"
    for manifest in folder.glob("step-*.json"):
        assert checkpoint.damage(manifest.with_suffix(".ckpt")) in (None, "there is no such file")
    for link in folder.glob("????.ckpt"):
        checkpoint.load(link)


def contents(run_dir: Path) -> list[str]:
    return sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*"))
