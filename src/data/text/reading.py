"""Text files: found, read and cleaned."""

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
    out: dict[Path, None] = {}  # in order, each once
    others: list[Path] = []
    for path in map(Path, files):
        if not path.exists():
            raise DataError(f"data.files: {path} is not there -> name text files or folders")
        for file in files_in(path):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file == path or (file.suffix.lower() in SUFFIXES and not hidden):
                out[file] = None
            else:
                others.append(file)
    if not out:
        raise DataError(f"data.files: there is no {', '.join(SUFFIXES)} file -> name others, or leave it out")
    return list(out), others


def read(paths: list[Path], cleaning: Cleaning) -> dict[str, str]:
    """The text of each file that is UTF-8 and can be read."""
    out = {}
    for path in paths:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as e:
            where = f"in line {data[: e.start].count(10) + 1}, at byte {e.start}"
            cleaning.skip("", str(path), f"not UTF-8: {where}", "save it as UTF-8")
        except OSError as e:
            cleaning.skip("", str(path), f"cannot be read: {e.strerror}", "mend it")
        else:
            control = len(CONTROL.findall(text))
            if control > MAX_CONTROL_FRAC * len(text):
                reason = f"no text: {control:,} of {len(text):,} characters are control characters, as in UTF-16"
                cleaning.skip("", str(path), reason, "save it as UTF-8")
            else:
                out[str(path)] = text
    return out


def clean(texts: dict[str, str], cleaning: Cleaning) -> list[str]:
    """Documents that are neither empty nor seen before, without control characters; raises DataError where none is."""
    cleaning.came_in = len(texts) + cleaning.skipped
    cleaning.check()
    first: dict[str, str] = {}  # text -> the first file that has it
    num_control = 0
    for name, raw in texts.items():
        text, n = CONTROL.subn("", raw)
        num_control += n
        if not text.strip():
            cleaning.remove("", name, "empty")
        elif text in first:
            cleaning.remove("", name, "duplicate", first[text])
        else:
            first[text] = name
    if not first:
        raise DataError("data.files: no text is left after cleaning -> name files that are not empty")
    if num_control:
        cleaning.notes.append(f"{num_control:,} control characters are taken out")
    return list(first)
