"""Cleaned and packed data, made once and memory-mapped ever after."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from src.errors import DataError, EnvironmentFault


class Rows:
    """Rows of an array, fetched when they are asked for, so that a set need not fit in memory."""

    def __init__(self, array: np.ndarray, index: np.ndarray) -> None:
        self.array, self.index = array, index
        self.dtype, self.shape = array.dtype, (len(index), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.array[self.index[part]]


Splits = Mapping[str, Mapping[str, np.ndarray | Rows]]  # split -> {"x": ..., "targets": ...}
Build = Callable[[], tuple[Splits, dict[str, Any]]]


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, in order, also through links."""
    out: list[Path] = []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_loop(Path(at), name))
        out += [Path(at, name) for name in sorted(names)]
    return out


def is_loop(folder: Path, name: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    return (folder / name).is_symlink() and folder.resolve().is_relative_to((folder / name).resolve())


def fingerprint(options: dict[str, Any], files: Iterable[Path] = ()) -> str:
    """A key that changes with the options, and with the size or time of any source file."""
    found = [(os.path.abspath(f), os.stat(f)) for f in sorted(files) if f.exists()]
    stats = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found]
    return hashlib.sha256(json.dumps([options, stats], sort_keys=True, default=str).encode()).hexdigest()[:16]


def prepare(cache_dir: Path, name: str, build: Build) -> Path:
    """The folder `cache_dir/name`, built if it is not there: whole or not at all, by one process at a time.

    Args:
        build: gives the arrays of each split and the data report.

    Raises:
        DataError: a file of the data cannot be read.
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
        if e.filename and not Path(e.filename).is_relative_to(cache_dir):
            raise DataError(f"{e.filename}: {e.strerror} -> check where the data lies") from e
        raise EnvironmentFault(f"data.cache_dir {cache_dir}: {e.strerror or e} -> free space or name another") from e
    return folder


def build_into(tmp: Path, folder: Path, build: Build) -> None:
    try:
        splits, report = build()
        for split, arrays in splits.items():
            for name, array in arrays.items():
                with open(tmp / f"{split}_{name}.npy", "wb") as f:
                    write(f, array)
                    f.flush()
                    os.fsync(f.fileno())
        (tmp / "report.json").write_text(json.dumps(report, indent=1))
        tmp.rename(folder)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def write(file: BinaryIO, array: np.ndarray | Rows) -> None:
    """As np.save does, but a part at a time."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    step = max(1, 2**24 // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        file.write(np.ascontiguousarray(array[start : start + step]).tobytes())


def read(folder: Path, split: str, name: str) -> Tensor:
    """One array as a tensor over a memory map: pages are read when a batch needs them."""
    # Copy-on-write, because torch wants a writable buffer; nothing writes to it.
    return torch.from_numpy(np.load(folder / f"{split}_{name}.npy", mmap_mode="c"))


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())
