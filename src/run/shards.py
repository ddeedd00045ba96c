"""The tensors of a sharded checkpoint: beside `step-N.ckpt`, which holds all else and says of each tensor only shape
and type, a folder `step-N.shards` with a safetensors file of each process, in which are its rows of each tensor.

No pickle is in them; torch's own format of sharded checkpoints runs code that its metadata holds.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from src.run.files import sha256_of, write_synced

SHARDED = ("state_dict", "optimizer_states")  # the parts of a checkpoint whose tensors are divided


def shards_of(path: Path) -> Path:
    """The folder of a checkpoint's shards, where it has some."""
    return path.resolve().with_suffix(".shards")


def write_shard(file: Path, rows: dict[str, tuple[int, Tensor]]) -> str:
    """Write the rows of each tensor, from the row of this number on; gives the file's SHA-256."""
    tensors = {key: part.clone() for key, (_, part) in rows.items()}  # tied weights have two names
    data = save(tensors, metadata={key: str(start) for key, (start, _) in rows.items()})
    write_synced(file, data)
    return hashlib.sha256(data).hexdigest()


def shard_damage(path: Path, hashes: dict[str, str]) -> str | None:
    """What is wrong with those of a checkpoint's shards whose hashes are given, or None."""
    for name, sha256 in hashes.items():
        file = shards_of(path) / name
        if not file.is_file():
            return f"its shard {name} is missing"
        if sha256_of(file) != sha256:
            return f"the bytes of its shard {name} are not those that were written"
    return None


def copy_shards(source: Path, path: Path, names: Iterable[str]) -> None:
    for name in names:
        shards_of(path).mkdir(exist_ok=True)
        write_synced(shards_of(path) / name, (shards_of(source) / name).read_bytes())


def remove_shards(path: Path) -> None:
    shutil.rmtree(path.with_suffix(".shards"), ignore_errors=True)


def set_aside(path: Path) -> None:
    """With a checkpoint that is refused."""
    shards = path.with_suffix(".shards")
    if shards.is_dir():
        shutil.rmtree(f"{shards}.refused", ignore_errors=True)
        shards.rename(f"{shards}.refused")


def remove_orphans(folder: Path) -> None:
    """Those of which there is no checkpoint (yet)."""
    for shards in folder.glob("step-*.shards"):
        if not shards.with_suffix(".ckpt").exists():
            shutil.rmtree(shards)


class Shards:
    """Reads from shards; only what is asked for gets into memory.

    Args:
        path: the checkpoint.
        names: its files of shards.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.parts: dict[str, list[tuple[int, Any]]] = {}
        for name in names:
            file = safe_open(shards_of(path) / name, framework="pt")
            for key, start in (file.metadata() or {}).items():
                self.parts.setdefault(key, []).append((int(start), file.get_slice(key)))

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """The rows from start to before stop of a tensor; raises KeyError where there is no such tensor."""
        found = []
        for first, part in sorted(self.parts[key], key=lambda pair: pair[0]):
            begin, end = max(start - first, 0), min(stop - first, part.get_shape()[0])
            found += [part[begin:end]] if begin < end else []
        return torch.cat(found) if found else self.parts[key][0][1][:0]


def as_one_device(t: Tensor) -> Tensor:
    """Kernels, and their optimizer states, with channels innermost, as src/models/factory.py has them: fused optimizers
    take for granted that both lie alike in memory."""
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def fill(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """A sharded checkpoint with its tensors in memory, as if it were one file."""
    shards = Shards(path, checkpoint.pop("shards"))

    def whole(key: str, t: Tensor) -> Tensor:
        return as_one_device(shards.rows(key, 0, len(t))) if t.is_meta else t

    return checkpoint | {name: replaced(checkpoint[name], whole, name) for name in SHARDED}


def replaced(value: Any, change: Callable[[str, Tensor], Any], key: str) -> Any:
    """A copy of nested plain data, in which change(key, tensor) stands for each tensor; keys are dotted paths."""
    if isinstance(value, Tensor):
        return change(key, value)
    if isinstance(value, dict):
        return {name: replaced(item, change, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(item, change, f"{key}.{i}") for i, item in enumerate(value))
    return value
