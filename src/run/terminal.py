"""What people read in the terminal or a log file: names and values, durations, paths as one would type them."""

import math
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.run.redact import hide

PLAIN: dict[str, Any] = {"highlight": False, "force_jupyter": False}  # a notebook gets the lines of a log file


def console() -> Console:
    """Standard output, of the first process only: lines are folded at words on a terminal, and never elsewhere."""
    terminal = sys.stdout.isatty()
    width = None if terminal else 1000  # a table is only as wide as it must be
    return Console(file=sys.stdout, soft_wrap=not terminal, width=width, quiet=rank() != 0, **PLAIN)


def rows(pairs: dict[str, str]) -> Text:
    """A line for each name and its value."""
    width = max(10, *(len(name) + 2 for name in pairs))
    return Text("\n").join(Text.assemble((f"{name:<{width}}", "bold"), value) for name, value in pairs.items())


def print_table(header: list[str], lines: Iterable[list[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False, show_header=any(header))
    for line in lines:
        table.add_row(*map(Text, line))  # else rich would take [brackets] for its own
    with (out := console()).capture() as text:
        out.print(table)
    rank_zero_print("\n".join(line.rstrip() for line in text.get().splitlines()))


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def relative_path(path: Path) -> str:
    """A path as one would type it from this folder; a program that is on the PATH, by its name."""
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def rank() -> int:
    """The number of this process among those that train together, as its launcher says; 0 does what is done once."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def rank_zero_print(text: str) -> None:
    console().out(hide(text), highlight=False)


def count(n: float, unit: str = "") -> str:
    """1,234 as it is, larger numbers with K, M, G, T or P."""
    power = min(int(math.log10(max(n, 1))) // 3, 5)
    return f"{n:,.0f} {unit}".strip() if n < 10_000 else f"{n / 1000**power:.4g} {' KMGTP'[power]}{unit}"


def by_part(parts: dict[str, int]) -> str:
    """Bytes in all and by part, the largest first, without those that hardly count."""
    total = sum(parts.values())
    large = sorted((item for item in parts.items() if item[1] > total / 200), key=lambda item: -item[1])
    return f"{mib(total)}: {', '.join(f'{name} {mib(size)}' for name, size in large)}"


def mib(size: float) -> str:
    if size >= 1000 * 2**30:
        return f"{size / 2**30:,.0f} GiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.{0 if size > 2**24 else 1}f} MiB"
