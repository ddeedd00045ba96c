"""Checkpoints that survive a kill at any byte: written beside their name, synced, and vouched for before they get it.

A checkpoint `step-00000120.ckpt` never changes. Its manifest `step-00000120.json` holds its hash and is written first;
the renaming of the whole, synced file makes it a checkpoint. `last.ckpt` and `best.ckpt` are links.
"""

import errno
import hashlib
import io
import json
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from src.run.errors import CheckpointError, ConfigError, EnvironmentFault
from src.run.files import sync, write_text

SCHEMA = 1  # of what a checkpoint holds; one with another number is refused
POSITION = ("global_step", "steps_logged", "best")


def check_strategy(strategy: Strategy) -> None:
    """Refuse one that writes checkpoints of its own, past any CheckpointIO: such a run could not go on."""
    if isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
        name = type(strategy).__name__
        raise ConfigError(f"trainer.strategy: {name} writes checkpoints in its own way, unverified -> take ddp")


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's way to files: nothing is ever half written under its final name, nothing damaged is loaded.

    Training waits until a checkpoint is in memory as bytes; a thread writes them, one checkpoint at a time.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Args:
        storage_options: how many of the newest to keep; by default all.
        """
        self.finish()
        file = io.BytesIO()
        torch.save({**checkpoint, "schema": SCHEMA}, file)
        position = {name: checkpoint.get(name) for name in POSITION}
        self.writing = self.thread.submit(write, Path(path), file.getbuffer(), position, storage_options)

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            EnvironmentFault: it could not be written.
        """
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def check(self) -> None:
        """Raise what went wrong in the thread, without waiting for it."""
        if self.writing and self.writing.done():
            self.finish()

    def teardown(self) -> None:
        self.thread.shutdown()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))


def write(path: Path, data: bytes | memoryview, position: dict[str, Any], keep_last: int | None = None) -> None:
    """Make a checkpoint of these bytes, link it as the last and its best as the best, then delete old ones.

    Raises:
        EnvironmentFault: it could not be written; those that were there still are.
    """
    try:
        store(path, data, position)
        point_to(path)
        if keep_last and damage(path) is None:
            prune(path.parent, keep_last)
    except OSError as e:
        raise EnvironmentFault(
            f"checkpoint {path} was not written: {e.strerror} -> mend that, then give the same command again"
        ) from e


def store(path: Path, data: bytes | memoryview, position: dict[str, Any]) -> None:
    tmp = path.with_suffix(".tmp")
    sha256 = hashlib.sha256(data).hexdigest()
    with open(tmp, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    manifest = {"file": path.name, "sha256": sha256, "bytes": len(data), **position, "crc32": crc32(position)}
    write_text(manifest_of(path), json.dumps(manifest))
    tmp.rename(path)


def prune(folder: Path, keep_last: int) -> None:
    manifests = sorted(folder.glob("step-*.json"), reverse=True)
    # A kept checkpoint's best is kept: whoever must go on from the older one needs it.
    best = {best_of(manifest) for manifest in manifests[:keep_last]}
    for path in (manifest.with_suffix(".ckpt") for manifest in manifests[keep_last:]):
        if path not in best:
            remove(path)


def manifest_of(path: Path) -> Path:
    return path.resolve().with_suffix(".json")


def read_manifest(path: Path) -> dict[str, Any]:
    """file, sha256, bytes, global_step, steps_logged, and the name of the best checkpoint up to this one."""
    return json.loads(manifest_of(path).read_text())


def crc32(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps([manifest[name] for name in POSITION]).encode())


def best_of(path: Path) -> Path | None:
    """The best checkpoint up to this one, if its manifest names one."""
    try:
        return path.with_name(read_manifest(path)["best"])
    except (ValueError, LookupError, TypeError):  # damaged, or none was the best
        return None


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    manifest_of(path).unlink(missing_ok=True)


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


def damage(path: Path, alone: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None.

    Args:
        alone: one without a manifest (a copy, say) passes; loading it then finds out whether it can be read.
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
        size, sha256, step = (manifest[key] for key in ("bytes", "sha256", "global_step"))
        if path.resolve().name != manifest["file"] or f"step-{step:08d}" not in manifest["file"]:
            return f"its manifest {name} is of another"
        if manifest.get("crc32", crc32(manifest)) != crc32(manifest):
            return f"its manifest {name} is not what was written"
    except (ValueError, LookupError, TypeError):
        return f"its manifest {name} cannot be read"
    stat = path.stat()
    if stat.st_size != size:
        return f"it has {stat.st_size} bytes, not {size}"
    found = sha256_of(path.resolve(), (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return None if found == sha256 else "its bytes are not those that were written"


@cache
def sha256_of(path: Path, state: tuple[int, ...]) -> str:
    """Read once in each state: a large one takes seconds, and finding, resuming and testing each ask for it."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint of this project and version.
    """
    checkpoint = read(path)
    if "state_dict" not in checkpoint:
        raise CheckpointError(f"checkpoint {path}: it holds no state_dict -> take one that this project wrote")
    if checkpoint.get("schema") != SCHEMA:
        other = f"schema {checkpoint.get('schema')}, not {SCHEMA}: another version or project wrote it"
        raise CheckpointError(f"checkpoint {path}: {other} -> load only its weights (model.init_from), or take another")
    return checkpoint


def read(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain data, never code.

    Raises:
        CheckpointError: it is missing, damaged, or of another kind.
    """
    wrong = damage(path)
    if wrong:
        raise CheckpointError(f"checkpoint {path}: {wrong} -> take another, or leave it out to start afresh")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # what a broken file makes torch raise has no common base
        if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno != errno.EINVAL):  # of a place before it
            raise
        raise CheckpointError(f"checkpoint {path}: not a file that can be read safely -> take another") from e
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"checkpoint {path}: it holds no names of tensors -> take another")
    return checkpoint


def fit_weights(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Load weights that must fit exactly.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    saved, wanted = (
        {name: list(value.shape) if isinstance(value, torch.Tensor) else value for name, value in weights.items()}
        for weights in (state, model.state_dict())
    )
    differ = [
        f"{name} is {saved.get(name, 'missing')} there, {wanted.get(name, 'missing')} here"
        for name in {**wanted, **saved}
        if saved.get(name, "missing") != wanted.get(name, "missing")
    ]
    if differ:
        more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
        text = f"{'; '.join(differ[:5])}{more} -> take its config, or another checkpoint"
        raise CheckpointError(f"the checkpoint is of another network: {text}")
    model.load_state_dict(state)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that a run can go on from, and a line for each newer one, which is set aside.

    The best checkpoint up to it must be whole, too, or the run would end without one; an older start makes it again.
    What killed processes left behind is deleted, so only one process may use the folder.
    """
    for orphan in folder.glob("*.tmp"):
        orphan.unlink()
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
        manifest_of(path).unlink(missing_ok=True)
    for name in ("last.ckpt", "best.ckpt"):
        (folder / name).unlink(missing_ok=True)
    return None, refused
