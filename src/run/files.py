"""Small files: read, and written whole or not at all."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from src.run.redact import redact

ROOT = Path(__file__).parents[2]


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(redact(data), indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it holds the old text or the new one, never a part."""
    tmp = path.with_name(path.name + ".tmp")
    write_synced(tmp, text.encode())
    tmp.rename(path)
    sync(path.parent)


def write_synced(path: Path, data: bytes | memoryview) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sha256_of(path: Path) -> str:
    stat = path.stat()
    return sha256_in(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@cache
def sha256_in(path: Path, state: tuple[int, ...]) -> str:
    """Read once in each state: a large one takes seconds, and finding, resuming and testing each ask for it."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
