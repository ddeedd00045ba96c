"""Small files: read, and written whole or not at all; folders named by the time."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.run.errors import EnvironmentFault
from src.run.redact import redact

ROOT = Path(__file__).parents[2]


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it holds the old text or the new one, never a part."""
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "w", encoding="utf-8", newline="") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    tmp.rename(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(redact(data), indent=1, default=str) + "\n")


def new_path(parent: Path, suffix: str = "") -> Path:
    """A folder named by the time, made here, so that two commands given at once get two.

    Raises:
        EnvironmentFault: it cannot be made.
    """
    name = time.strftime("%Y-%m-%d_%H-%M-%S") + suffix
    for path in (parent / name, *(parent / f"{name}_{i}" for i in range(2, 1000))):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as e:
            raise EnvironmentFault(f"{path}: cannot be made: {e.strerror} -> give --run_dir") from e
        return path
    raise EnvironmentFault(f"{parent / name}: a thousand runs have this name -> give --run_dir")


def latest(files: Iterable[Path]) -> Path | None:
    """The one written last; names do not tell, because --run_dir may give any."""
    return max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
