"""Cleaned and packed data, made once and memory-mapped ever after."""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from src.run.errors import DataError, EnvironmentFault
from src.run.files import sync, write_text
from src.run.terminal import rank_zero_print

PART, MAX_PARTS = 2**22, 64  # bytes that are read at once for a checksum; parts of a large file
MANIFEST = "files.json"  # size and checksum of each file; written last


class Rows:
    """Rows of an array, fetched when they are asked for, so that a set need not fit in memory."""

    def __init__(self, array: "np.ndarray | Rows", index: np.ndarray) -> None:
        self.array, self.index = array, index
        self.dtype: np.dtype = array.dtype
        self.shape: tuple[int, ...] = (len(index), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        return self.array[self.index[part]]


Splits = Mapping[str, Mapping[str, np.ndarray | Rows]]  # split -> {"x": ..., "targets": ...}
Prepared = tuple[Splits, dict[str, Any]]  # with the data report


def files_in(path: Path) -> list[Path]:
    """All files below a folder, in order, also through links, but not those that lead back up; of a file, itself."""
    out = [path] if path.is_file() else []
    for parent, folders, names in os.walk(path, followlinks=True):
        real = Path(parent).resolve()
        folders[:] = sorted(name for name in folders if not real.is_relative_to((real / name).resolve()))
        out += [Path(parent, name) for name in sorted(names)]
    return out


def fingerprint(options: dict[str, Any], files: Iterable[Path] = ()) -> str:
    """A key that changes with the options, and with the size or time of any source file."""
    stats = [(os.path.abspath(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files) if f.exists()]
    return hashlib.sha256(json.dumps([options, stats], sort_keys=True, default=str).encode()).hexdigest()[:16]


def prepare(cache_dir: Path, name: str, build: Callable[[], Prepared]) -> Path:
    """The folder `cache_dir/name`, built if it is not there or damaged: whole or not at all, by one process at a time.

    Raises:
        DataError: a file of the data cannot be read.
        EnvironmentFault: the cache folder cannot be written.
    """
    folder = cache_dir / name
    if damage(folder) is None:
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{name}.lock"):
            if wrong := damage(folder):  # else another process has built it meanwhile
                if folder.exists():
                    rank_zero_print(f"The prepared data is made again, because in {folder} {wrong}.")
                build_into(folder, build)
    except OSError as e:
        if e.errno and Path(e.filename or cache_dir).is_relative_to(cache_dir):
            hint = "free space or name another"
            raise EnvironmentFault(f"data.cache_dir {cache_dir}: {e.strerror} -> {hint}") from e
        what = f"{e.filename}: {e.strerror}" if e.filename else str(e)
        raise DataError(f"{what} -> check where the data lies") from e
    return folder


def build_into(folder: Path, build: Callable[[], Prepared]) -> None:
    tmp = folder.with_name(f"{folder.name}.tmp")
    for old in (folder, tmp):  # damaged, or of a process that was killed while it built
        shutil.rmtree(old, ignore_errors=True)
    tmp.mkdir()
    try:
        splits, report = build()
        for split, arrays in splits.items():
            for name, array in arrays.items():
                with open(tmp / f"{split}_{name}.npy", "wb") as f:
                    write(f, array)
                    f.flush()
                    os.fsync(f.fileno())
        write_text(tmp / "report.json", json.dumps(report, indent=1))
        write_text(tmp / MANIFEST, json.dumps({file.name: checksum(file) for file in tmp.iterdir()}))
        tmp.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with prepared data, or None."""
    try:
        for name, written in json.loads((folder / MANIFEST).read_text()).items():
            if checksum(folder / name) != written:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as e:
        return f"a file cannot be read ({e})"
    return None


def checksum(file: Path) -> list[int]:
    """Size, and CRC-32 of the whole or, so that a start takes as long with any data, of some parts all over it."""
    size, crc = file.stat().st_size, 0
    with open(file, "rb") as f:
        for start in range(0, size, max(PART, size // MAX_PARTS)):
            f.seek(start)
            crc = zlib.crc32(f.read(PART), crc)
    return [size, crc]


def write(file: BinaryIO, array: np.ndarray | Rows) -> None:
    """As np.save does, but a part at a time."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    step = max(1, 2**24 // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        file.write(np.ascontiguousarray(array[start : start + step]).tobytes())


def content(folder: Path) -> dict[str, list[int]]:
    """What tells these arrays from others: the size and checksum of each."""
    written = json.loads((folder / MANIFEST).read_text())
    return {name: written[name] for name in sorted(written) if name.endswith(".npy")}


def read(folder: Path, split: str, name: str) -> Tensor:
    """One array as a tensor over a memory map: pages are read when a batch needs them."""
    # Copy-on-write, because torch wants a writable buffer; nothing writes to it.
    return torch.from_numpy(np.load(folder / f"{split}_{name}.npy", mmap_mode="c"))


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())
