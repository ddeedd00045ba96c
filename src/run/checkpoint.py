"""Checkpoints that survive a kill at any byte: written beside their name, synced, and vouched for before they get it.

A checkpoint `step-00000120.ckpt` never changes. Its manifest `step-00000120.json` holds its hash and is written first;
the renaming of the whole, synced file makes it a checkpoint. `last.ckpt` and `best.ckpt` are links. Of a sharded one
(src/run/shards.py) the shards are written before, and the manifest has their hashes, too.
"""

import errno
import hashlib
import io
import json
import pickle
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, XLACheckpointIO
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceXLAStrategy,
    Strategy,
    XLAStrategy,
)
from safetensors.torch import load_file

from src.run.errors import CheckpointError, ConfigError, EnvironmentFault, KnownError
from src.run.files import sha256_of, sync, write_synced, write_text
from src.run.shards import copy_shards, fill, remove_orphans, remove_shards, set_aside, shard_damage

SCHEMA = 2  # of what a checkpoint holds; one with another number is refused
XLA = (SingleDeviceXLAStrategy, XLAStrategy)
ALL = slice(None)
POSITION = ("global_step", "steps_logged", "best")


def check_strategy(strategy: Strategy) -> None:
    """Refuse one that writes checkpoints of its own, past any CheckpointIO: such a run could not go on."""
    others = isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy))
    if others and not getattr(strategy, "verified", False):
        name = f"trainer.strategy: {type(strategy).__name__}"
        raise ConfigError(f"{name} writes checkpoints in its own way, unverified -> take configs/trainer/fsdp.yaml")


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's way to files: nothing is ever half written under its final name, nothing damaged is loaded.

    Training waits until a checkpoint is in memory as bytes; a thread writes them, one checkpoint at a time.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """`storage_options` is how many of the newest to keep; by default all."""
        self.finish()
        file = io.BytesIO()
        torch.save({**checkpoint, "schema": SCHEMA}, file)
        self.writing = self.thread.submit(write, Path(path), file.getbuffer(), position_of(checkpoint), storage_options)

    def finish(self, wait: bool = True) -> None:
        """Raise what went wrong in the thread; by default once the last checkpoint is on the disk."""
        if self.writing and (wait or self.writing.done()):
            writing, self.writing = self.writing, None
            writing.result()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Lightning's callbacks that would ask for it are refused; `prune` removes old ones."""


class XLAVerifiedCheckpointIO(VerifiedCheckpointIO, XLACheckpointIO):
    """The same, of a kind that Lightning's strategies for TPUs take."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(move_data_to_device(checkpoint, "cpu"), path, storage_options)


def checkpoint_io_for(strategy: Strategy) -> VerifiedCheckpointIO:
    return XLAVerifiedCheckpointIO() if isinstance(strategy, XLA) else VerifiedCheckpointIO()


def position_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    shards = {"shards": checkpoint["shards"]} if "shards" in checkpoint else {}
    return {name: checkpoint.get(name) for name in POSITION} | shards


def write(path: Path, data: bytes | memoryview, position: dict[str, Any], keep_last: int | None = None) -> None:
    """Make a checkpoint of these bytes, link it as the last and its best as the best, then delete old ones."""
    try:
        store(path, data, position)
        point_to(path)
        if keep_last and damage(path, share=None) is None:  # shards were hashed when they were written
            prune(path.parent, keep_last)
    except OSError as e:
        raise EnvironmentFault(
            f"checkpoint {path} was not written: {e.strerror} -> mend that, then give the same command again"
        ) from e


def store(path: Path, data: bytes | memoryview, position: dict[str, Any]) -> None:
    tmp, sha256 = path.with_suffix(".tmp"), hashlib.sha256(data).hexdigest()
    write_synced(tmp, data)
    manifest = {"file": path.name, "sha256": sha256, **position, "crc32": crc32(position)}
    write_text(manifest_of(path), json.dumps(manifest))
    tmp.rename(path)


def copy(source: Path, path: Path, position: dict[str, Any]) -> None:
    """Make a checkpoint that has been loaded one of another folder, too."""
    copy_shards(source, path, position.get("shards", ()))
    store(path, source.read_bytes(), position)


def prune(folder: Path, keep_last: int) -> None:
    manifests = sorted(folder.glob("step-*.json"), reverse=True)
    # A kept checkpoint's best is kept: whoever must go on from the older one needs it.
    best = {best_of(manifest) for manifest in manifests[:keep_last]}
    for manifest in manifests[keep_last:]:
        path = manifest.with_suffix(".ckpt")
        if path not in best:
            path.unlink(missing_ok=True)
            manifest.unlink()
            remove_shards(path)


def manifest_of(path: Path) -> Path:
    return path.resolve().with_suffix(".json")


def read_manifest(path: Path) -> dict[str, Any]:
    """file, sha256, global_step, steps_logged, the name of the best checkpoint up to this one, shards if there are."""
    return json.loads(manifest_of(path).read_text())


def crc32(manifest: dict[str, Any]) -> int:
    shards = [manifest["shards"]] if "shards" in manifest else []
    return zlib.crc32(json.dumps([manifest[name] for name in POSITION] + shards).encode())


def best_of(path: Path) -> Path | None:
    """The best checkpoint up to this one, if its manifest names one."""
    try:
        return path.with_name(read_manifest(path)["best"])
    except (ValueError, LookupError, TypeError):  # damaged, or none was the best
        return None


def point_to(path: Path) -> None:
    """Make a checkpoint the last one of its folder, and its best one the best."""
    for name, target in (("last.ckpt", path), ("best.ckpt", best_of(path))):
        link = path.with_name(name)
        if target is None:
            link.unlink(missing_ok=True)
            continue
        tmp = link.with_suffix(".tmp")
        tmp.unlink(missing_ok=True)
        tmp.symlink_to(target.name)
        tmp.rename(link)  # there is no moment at which it points nowhere
    sync(path.parent)


def damage(path: Path, alone: bool = True, share: slice | None = ALL) -> str | None:
    """What is wrong with a checkpoint, or None.

    Args:
        alone: one without a manifest (a copy, say) passes; loading it then finds out whether it can be read.
        share: which of its shards to look at; None of them, too.
    """
    if not path.exists():
        return "there is no such file"
    if not path.is_file():
        return "it is a folder; such checkpoints are never read, because that could run code"
    name = manifest_of(path).name
    if not manifest_of(path).exists():
        return None if alone else f"its manifest {name} is missing"
    try:
        manifest = read_manifest(path)
        file, sha256, intact = manifest["file"], manifest["sha256"], manifest["crc32"] == crc32(manifest)
    except (ValueError, LookupError, TypeError):
        return f"its manifest {name} cannot be read"
    if path.resolve().name != file:
        return f"its manifest {name} is of another"
    if not intact:
        return f"its manifest {name} is not what was written"
    if sha256_of(path.resolve()) != sha256:
        return "its bytes are not those that were written"
    shards = [*manifest.get("shards", {}).items()][share] if share else []
    return shard_damage(path, dict(shards))


def load(path: Path, filled: bool = True, share: slice = ALL) -> dict[str, Any]:
    """Read a checkpoint of this project and version, or raise CheckpointError; the arguments are those of `read`."""
    checkpoint = read(path, filled, share)
    if checkpoint.get("schema") != SCHEMA:
        other = f"schema {checkpoint.get('schema')}, not {SCHEMA}: another version or project wrote it"
        raise CheckpointError(f"checkpoint {path}: {other} -> load only its weights (model.init_from), or take another")
    return checkpoint


def read(path: Path, filled: bool = True, share: slice = ALL) -> dict[str, Any]:
    """Read a file of tensors and plain data, never code, or raise CheckpointError.

    Args:
        filled: with all tensors in memory; else they are read when they are used, and those of shards are left out.
        share: which of its shards to verify, where other processes verify the others.
    """
    if wrong := damage(path, share=share):
        raise CheckpointError(f"checkpoint {path}: {wrong} -> take another, or leave it out to start afresh")
    try:
        checkpoint = plain(path, filled)
        if filled and isinstance(checkpoint, dict) and "shards" in checkpoint:
            checkpoint = fill(checkpoint, path)
    except KnownError:
        raise
    except Exception as e:  # what a broken file makes torch raise has no common base
        if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno != errno.EINVAL):  # of a place before it
            raise
        raise CheckpointError(f"checkpoint {path}: not a file that can be read safely -> take another") from e
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"checkpoint {path}: it holds no names of tensors -> take another")
    return checkpoint


def plain(path: Path, filled: bool) -> Any:
    """What a file of tensors and plain data holds. The states of torchao's optimizers are such data, too: it says so
    when it is loaded."""
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=not filled)
    except pickle.UnpicklingError:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not unknown or not all(name.startswith("torchao.optim.") for name in unknown):
            raise
    try:
        import_module("torchao.optim")
    except ImportError as e:
        raise EnvironmentFault(f"checkpoint {path}: its optimizer is of torchao -> pip install torchao") from e
    return torch.load(path, map_location="cpu", weights_only=True, mmap=not filled)


def fit_weights(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Load weights that must fit exactly; of torch's message, which is a page long, the beginning is told."""
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        text = "; ".join(line.strip()[:200] for line in str(e).splitlines()[1:6])
        text = f"the checkpoint is of another network: {text} -> take its config, or another checkpoint"
        raise CheckpointError(text) from e


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that a run can go on from, and a line for each newer one, which is set aside.

    The best checkpoint up to it must be whole, too, or the run would end without one; an older start makes it again.
    What killed processes left behind is deleted, so only one process may use the folder.
    """
    for orphan in folder.glob("*.tmp"):
        orphan.unlink()
    remove_orphans(folder)
    refused: list[str] = []
    names = {path.stem for kind in ("ckpt", "json") for path in folder.glob(f"step-*.{kind}")}
    by_time = sorted(names, key=lambda name: (name[:13], -len(name)), reverse=True)  # after a validation goes before
    for path in (folder / f"{name}.ckpt" for name in by_time):
        wrong = damage(path, alone=False)
        if not wrong and (best := best_of(path)) and (lost := damage(best, alone=False)):
            wrong = f"the best checkpoint up to it, {best.name}, is lost: {lost}"
        if wrong is None:
            point_to(path)
            return path, refused
        refused.append(f"{path}: {wrong}")
        if path.exists():  # its name is needed again, its bytes may be of use
            path.rename(f"{path}.refused")
            set_aside(path)
        manifest_of(path).unlink(missing_ok=True)
    for name in ("last.ckpt", "best.ckpt"):
        (folder / name).unlink(missing_ok=True)
    return None, refused


def gathered(state: Any, trainer: Trainer) -> list[Any]:
    """The states of all processes, in the order of their ranks."""
    states: list[Any] = [state] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, state)
    return states
