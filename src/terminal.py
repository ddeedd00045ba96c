"""What people read in the terminal or a log file: tables of two columns, durations, paths as one would type them."""

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Standard output: lines are folded at words on a terminal, and never elsewhere."""
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, soft_wrap=not terminal, highlight=False, width=None if terminal else 160)


def rows(pairs: dict[str, str]) -> Table | str:
    """A table of names and values: on a terminal, values are folded to its width."""
    if not sys.stdout.isatty():
        width = max(10, *(len(name) + 2 for name in pairs))
        return "\n".join(f"{name:<{width}}{value}" for name, value in pairs.items())
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True, min_width=8)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, value)
    return table


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
