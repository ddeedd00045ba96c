"""What people read in the terminal or a log file: names and values, durations, paths as one would type them."""

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from src.run import rank


def console() -> Console:
    """Standard output, of the first process only: lines are folded at words on a terminal, and never elsewhere."""
    terminal = sys.stdout.isatty()
    width = None if terminal else 1000  # a table is only as wide as it must be
    return Console(file=sys.stdout, soft_wrap=not terminal, highlight=False, width=width, quiet=rank() != 0)


def rows(pairs: dict[str, str]) -> Text:
    """A line for each name and its value."""
    width = max(10, *(len(name) + 2 for name in pairs))
    return Text("\n").join(Text.assemble((f"{name:<{width}}", "bold"), value) for name, value in pairs.items())


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def here(path: Path) -> str:
    """A path as one would type it from this folder; a program that is on the PATH, by its name."""
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
