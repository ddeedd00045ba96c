"""Cleaned and packed data, made once and memory-mapped ever after."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from src.errors import EnvironmentFault

Splits = dict[str, dict[str, np.ndarray]]  # split -> {"x": ..., "targets": ...}


def fingerprint(options: dict[str, Any], files: Iterable[Path] = ()) -> str:
    """A key that changes with the options, and with the size or time of any source file."""
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files)]
    return hashlib.sha256(json.dumps([options, stats], sort_keys=True, default=str).encode()).hexdigest()[:16]


def prepare(cache_dir: Path, name: str, build: Callable[[], tuple[Splits, dict[str, Any]]]) -> Path:
    """The folder `cache_dir/name`, built if it is not there: whole or not at all, by one process at a time.

    Args:
        build: gives the arrays of each split and the data report.

    Raises:
        EnvironmentFault: the cache folder cannot be written.
    """
    folder = cache_dir / name
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{name}.lock"):
            if not folder.is_dir():
                for orphan in cache_dir.glob(f"{name}.tmp*"):  # of a process that was killed while it built
                    shutil.rmtree(orphan, ignore_errors=True)
                build_into(Path(tempfile.mkdtemp(prefix=f"{name}.tmp", dir=cache_dir)), folder, build)
    except OSError as e:
        raise EnvironmentFault(f"data.cache_dir {cache_dir}: {e.strerror or e} -> free space or name another") from e
    return folder


def build_into(tmp: Path, folder: Path, build: Callable[[], tuple[Splits, dict[str, Any]]]) -> None:
    try:
        splits, report = build()
        for split, arrays in splits.items():
            for name, array in arrays.items():
                with open(tmp / f"{split}_{name}.npy", "wb") as f:
                    np.save(f, array)
                    f.flush()
                    os.fsync(f.fileno())
        (tmp / "report.json").write_text(json.dumps(report, indent=1))
        tmp.rename(folder)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def read(folder: Path, split: str, name: str) -> Tensor:
    """One array as a tensor over a memory map: pages are read when a batch needs them."""
    # Copy-on-write, because torch wants a writable buffer; nothing writes to it.
    return torch.from_numpy(np.load(folder / f"{split}_{name}.npy", mmap_mode="c"))


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())
