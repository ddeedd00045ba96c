"""Checkpoints that survive a kill at any byte: written beside their name, synced, and vouched for before they get it.

A checkpoint `step-00000120.ckpt` never changes. Its manifest `step-00000120.json` holds its hash and is written first;
the renaming of the whole, synced file makes it a checkpoint. `last.ckpt` and `best.ckpt` are links.
"""

import hashlib
import io
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from src.errors import CheckpointError, EnvironmentFault
from src.run import sync, write_text

SCHEMA = 1  # of what a checkpoint holds; one with another number is refused
POSITION = ("global_step", "steps_logged", "best")


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
        return load(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))


def write(path: Path, data: bytes | memoryview, position: dict[str, Any], keep_last: int | None = None) -> None:
    """Make a checkpoint of these bytes, link it as the last and its best as the best, then delete old ones.

    Raises:
        EnvironmentFault: it could not be written; those that were there still are.
    """
    tmp = path.with_suffix(".tmp")
    try:
        sha256 = hashlib.sha256(data).hexdigest()
        with open(tmp, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        path.unlink(missing_ok=True)
        manifest = {"file": path.name, "sha256": sha256, "bytes": len(data), **position}
        write_text(manifest_of(path), json.dumps(manifest))
        tmp.rename(path)
        link(path.with_name("last.ckpt"), path)
        link(path.with_name("best.ckpt"), path.with_name(position["best"]) if position["best"] else None)
        sync(path.parent)
        if keep_last and damage(path) is None:
            prune(path.parent, keep_last)
    except OSError as e:
        raise EnvironmentFault(
            f"checkpoint {path} was not written: {e.strerror} -> mend that, then give the same command again"
        ) from e


def prune(folder: Path, keep_last: int) -> None:
    manifests = sorted(folder.glob("step-*.json"), reverse=True)
    # A kept checkpoint's best is kept: whoever must go on from the older one needs it.
    best = {best_of(manifest) for manifest in manifests[:keep_last]}
    for manifest in manifests[keep_last:]:
        path = manifest.with_suffix(".ckpt")
        if path.name not in best:
            remove(path)


def manifest_of(path: Path) -> Path:
    return path.resolve().with_suffix(".json")


def read_manifest(path: Path) -> dict[str, Any]:
    """file, sha256, bytes, global_step, steps_logged, and the name of the best checkpoint up to this one."""
    return json.loads(manifest_of(path).read_text())


def best_of(manifest: Path) -> str | None:
    try:
        return json.loads(manifest.read_text())["best"]
    except (ValueError, LookupError, TypeError):  # damaged
        return None


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    manifest_of(path).unlink(missing_ok=True)


def link(name: Path, target: Path | None) -> None:
    """Make `name` point to `target` beside it, with no moment at which it points nowhere; or take it away."""
    tmp = name.with_name(name.name + ".tmp")
    tmp.unlink(missing_ok=True)
    if target is None:
        name.unlink(missing_ok=True)
        return
    tmp.symlink_to(target.name)
    tmp.rename(name)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None.

    A checkpoint without a manifest (a copy, say) passes: loading it then finds out whether it can be read.
    """
    if not path.exists():
        return "there is no such file"
    if not path.is_file():
        return "it is a folder; such checkpoints are never read, because that could run code"
    if not manifest_of(path).exists():
        return None
    try:
        manifest = read_manifest(path)
        size, sha256, *_ = (manifest[name] for name in ("bytes", "sha256", *POSITION))
        if path.resolve().name != manifest["file"] or f"step-{manifest['global_step']:08d}" not in manifest["file"]:
            return f"its manifest {manifest_of(path).name} is of another"
    except (ValueError, KeyError, TypeError):
        return f"its manifest {manifest_of(path).name} cannot be read"
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes, not {size}"
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    return None if found == sha256 else "its bytes are not those that were written"


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint of this project and version.
    """
    checkpoint = read(path, map_location)
    if "state_dict" not in checkpoint:
        raise CheckpointError(f"checkpoint {path}: it holds no state_dict -> take one that this project wrote")
    if checkpoint.get("schema") != SCHEMA:
        other = f"schema {checkpoint.get('schema')}, not {SCHEMA}: another version or project wrote it"
        raise CheckpointError(f"checkpoint {path}: {other} -> load only its weights (model.init_from), or take another")
    return checkpoint


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a file of tensors and plain data, never code.

    Raises:
        CheckpointError: it is missing, damaged, or of another kind.
    """
    wrong = damage(path)
    if wrong:
        raise CheckpointError(f"checkpoint {path}: {wrong} -> take another, or leave it out to start afresh")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as e:  # what a broken file makes torch raise has no common base
        raise CheckpointError(f"checkpoint {path}: not a file that can be read safely -> take another") from e
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"checkpoint {path}: it holds no names of tensors -> take another")
    return checkpoint


def fit_weights(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Load weights that must fit exactly.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    saved, own = (
        {name: list(value.shape) if isinstance(value, torch.Tensor) else value for name, value in weights.items()}
        for weights in (state, model.state_dict())
    )
    differ = [name for name in {**own, **saved} if saved.get(name, "missing") != own.get(name, "missing")]
    if differ:
        lines = [
            f"{name} is {saved.get(name, 'missing')} there, {own.get(name, 'missing')} here" for name in differ[:5]
        ]
        more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise CheckpointError(
            f"the checkpoint is of another network: {'; '.join(lines)}{more} -> take its config, or another checkpoint"
        )
    model.load_state_dict(state)


def newest(folder: Path, tidy: bool = True) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that a run can go on from, and a line for each newer one, which is set aside.

    The best checkpoint up to it must be whole, too, or the run would end without one; an older start makes it again.

    Args:
        tidy: false changes nothing in the folder; of several processes one tidies, and all find the same.
    """
    refused = clean(folder) if tidy else []
    for manifest in sorted(folder.glob("step-*.json"), reverse=True):
        path = manifest.with_suffix(".ckpt")
        wrong = damage(path) or damage_of_best(path)
        if not tidy:
            if wrong is None:
                return path, []
            continue
        if wrong is None:
            link(folder / "last.ckpt", path)
            best = best_of(manifest)
            link(folder / "best.ckpt", folder / best if best else None)
            return path, refused
        refused.append(f"{path}: {wrong}")
        set_aside(path)
        manifest.unlink()
    for name in ("last.ckpt", "best.ckpt") if tidy else ():
        link(folder / name, None)
    return None, refused


def damage_of_best(path: Path) -> str | None:
    best = best_of(manifest_of(path))
    wrong = damage(path.with_name(best)) if best else None
    return wrong and f"the best checkpoint up to it, {best}, is lost: {wrong}"


def clean(folder: Path) -> list[str]:
    """Delete what killed processes left behind; a line for each checkpoint that has lost its manifest and is set aside.

    Only one process may use the folder.
    """
    for orphan in folder.glob("*.tmp"):
        orphan.unlink()
    lost = [path for path in sorted(folder.glob("step-*.ckpt")) if not manifest_of(path).exists()]
    for path in lost:
        set_aside(path)
    return [f"{path}: its manifest {manifest_of(path).name} is missing" for path in lost]


def set_aside(path: Path) -> None:
    """Its name is needed again, its bytes may be of use."""
    if path.exists():
        path.rename(path.with_name(f"{path.name}.refused"))
