"""Checkpoints that survive a kill at any byte: written beside their name, synced, renamed, then vouched for.

A checkpoint `step-00000120.ckpt` never changes. Its manifest `step-00000120.json` holds its hash and is written last,
so a checkpoint without a manifest is not one. `last.ckpt` and `best.ckpt` are links.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO

from src.errors import CheckpointError, EnvironmentFault
from src.run import write_text


class HashingFile:
    """Passes writes on and keeps their SHA-256, so that the file need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's way to files: nothing is ever half written under its final name, nothing damaged is loaded."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        tmp = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(tmp, "wb") as f:
                hashing = HashingFile(f)
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]
                f.flush()
                os.fsync(f.fileno())
            manifest_of(path).unlink(missing_ok=True)
            tmp.rename(path)
            manifest = {"file": path.name, "sha256": hashing.sha256.hexdigest(), "bytes": hashing.bytes}
            position = {name: checkpoint.get(name) for name in ("global_step", "steps_logged", "best")}
            write_text(manifest_of(path), json.dumps({**manifest, **position}))
        except (OSError, RuntimeError) as e:
            tmp.unlink(missing_ok=True)
            # torch reports a write that fails in its own words, as a RuntimeError.
            cause = e if isinstance(e, OSError) else e.__context__
            if not isinstance(cause, OSError):
                raise
            raise EnvironmentFault(
                f"checkpoint {path} was not written: {cause.strerror} -> mend that, then give the same command again"
            ) from e

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return load(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))


def manifest_of(path: Path) -> Path:
    return path.resolve().with_suffix(".json")


def read_manifest(path: Path) -> dict[str, Any]:
    """file, sha256, bytes, global_step, steps_logged, and the name of the best checkpoint up to this one."""
    return json.loads(manifest_of(path).read_text())


def remove(path: Path) -> None:
    manifest_of(path).unlink(missing_ok=True)  # first, so that what is left after a kill does not count
    path.unlink(missing_ok=True)


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
    if not manifest_of(path).exists():
        return None
    try:
        manifest = read_manifest(path)
        size, sha256 = manifest["bytes"], manifest["sha256"]
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
        CheckpointError: it is missing, damaged, or not a checkpoint.
    """
    checkpoint = read(path, map_location)
    if "state_dict" not in checkpoint:
        raise CheckpointError(f"checkpoint {path}: it holds no state_dict -> take one that this project wrote")
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
    except Exception as e:  # bytes of another kind make the reader fail in any way
        raise CheckpointError(f"checkpoint {path}: not a file that can be read safely -> take another") from e
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"checkpoint {path}: it holds no names of tensors -> take another")
    return checkpoint


def fit_weights(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Load weights that must fit exactly.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        lines = [line.strip() for line in str(e).splitlines()[1:6]]
        raise CheckpointError(f"the checkpoint is of another network: {' '.join(lines)[:400]}") from e


def newest(folder: Path, tidy: bool = True) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that a run can go on from, and a line for each newer one, which is set aside.

    The best checkpoint up to it must be whole, too, or the run would end without one; an older start makes it again.

    Args:
        tidy: false changes nothing in the folder; of several processes one tidies, and all find the same.
    """
    if tidy:
        clean(folder)
    refused: list[str] = []
    for manifest in sorted(folder.glob("step-*.json"), reverse=True):
        path = manifest.with_suffix(".ckpt")
        wrong = damage(path) or damage_of_best(path)
        if not tidy:
            if wrong is None:
                return path, []
            continue
        if wrong is None:
            link(folder / "last.ckpt", path)
            best = read_manifest(path)["best"]
            link(folder / "best.ckpt", folder / best if best else None)
            return path, refused
        refused.append(f"{path}: {wrong}")
        if path.exists():
            path.rename(path.with_name(f"{path.name}.refused"))  # its name is needed again, its bytes may be of use
        manifest.unlink()
    for name in ("last.ckpt", "best.ckpt") if tidy else ():
        link(folder / name, None)
    return None, refused


def damage_of_best(path: Path) -> str | None:
    best = read_manifest(path)["best"]
    wrong = damage(path.with_name(best)) if best else None
    return wrong and f"the best checkpoint up to it, {best}, is lost: {wrong}"


def clean(folder: Path) -> None:
    """Delete what killed processes left behind. Only one process may use the folder."""
    for orphan in folder.glob("*.tmp"):
        orphan.unlink()
    for path in folder.glob("step-*.ckpt"):
        if not manifest_of(path).exists():
            path.unlink()
