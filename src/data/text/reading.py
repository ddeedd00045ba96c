"""Text files: found, read and cleaned."""

import codecs
import hashlib
import re
from pathlib import Path

from src.data.cache import files_in
from src.data.report import Cleaning
from src.run.errors import DataError

SUFFIXES = (".txt", ".md", ".rst", ".py")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
MAX_CONTROL_FRAC = 0.1  # of a file of text; escapes of colours, in logs, stay below it


def topics() -> dict[str, str]:
    """The language reference that ships with Python."""
    from pydoc_data.topics import topics as out

    return dict(sorted(out.items()))


def source_files(files: list[str]) -> tuple[list[Path], list[Path]]:
    """Files to read, and those in folders that are hidden or no text by their names; raises DataError where none is."""
    out: list[Path] = []
    others: list[Path] = []
    for name in files:
        path = Path(name)
        if not path.exists():
            raise DataError(f"data.files: {path} is not there -> name text files or folders")
        seen = files_in(path)
        hidden = {f for f in seen if any(p.startswith(".") for p in f.relative_to(path).parts)}
        found = [f for f in seen if f == path or (f.suffix.lower() in SUFFIXES and f not in hidden)]
        others += sorted({*seen} - {*found})
        if not found:
            raise DataError(f"data.files: {path} has no {', '.join(SUFFIXES)} file -> name another folder")
        out += found
    if not out:
        raise DataError("data.files: the list is empty -> name text files, or leave it out")
    return list(dict.fromkeys(out)), others


def read(paths: list[Path], others: list[Path], cleaning: Cleaning) -> dict[str, str]:
    """The text of each file.

    Args:
        others: files that are not meant as text, for the report.

    Raises:
        DataError: a file is not UTF-8 or cannot be read, and may not be left out.
    """
    out = {}
    cleaning.came_in = len(paths) + len(others)
    for path in others:
        hidden = path.suffix.lower() in SUFFIXES
        cleaning.ignore("", str(path), "hidden file" if hidden else "no text by its name")
    for path in paths:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            control = len(CONTROL.findall(text))
            if control > MAX_CONTROL_FRAC * len(text):
                reason = f"no text: {control:,} of {len(text):,} characters are control characters, as in UTF-16"
                cleaning.skip("", str(path), reason, "save it as UTF-8")
            else:
                out[str(path)] = text
        except UnicodeDecodeError as e:
            encoding = "UTF-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "not UTF-8"
            reason = f"{encoding}: in line {data[: e.start].count(10) + 1}, at byte {e.start}"
            cleaning.skip("", str(path), reason, "save it as UTF-8")
        except OSError as e:
            cleaning.skip("", str(path), f"cannot be read: {e.strerror}", "mend it")
    cleaning.check_limit()
    return out


def clean(texts: dict[str, str], cleaning: Cleaning) -> tuple[list[str], int]:
    """Documents that are neither empty nor seen before, without control characters, and how many of those there were.

    Raises:
        DataError: nothing is left.
    """
    out: list[str] = []
    first: dict[bytes, str] = {}  # hash -> the first file that has this text
    num_control = 0
    for name, raw in texts.items():
        text, n = CONTROL.subn("", raw)
        num_control += n
        original = first.setdefault(hashlib.sha256(text.encode()).digest(), name)
        if not text.strip():
            cleaning.remove("", name, "empty")
        elif original != name:
            cleaning.remove("", name, "duplicate", original)
        else:
            out.append(text)
    if not out:
        raise DataError("data.files: no text is left after cleaning -> name files that are not empty")
    if num_control:
        cleaning.notes.append(f"{num_control:,} control characters are taken out")
    return out, num_control
