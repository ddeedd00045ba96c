"""What the benchmarks share: sides measured in turn, their medians and spread, as a table and a picture."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Times = dict[str, list[float]]  # side -> what was measured of it, a figure for each repeat


def in_turn(sides: dict[str, Callable[[int], float]], repeats: int, warm_up: int = 1) -> Times:
    """Measure each side so many times, A-B-B-A, so that slow minutes of the machine hit all of them; standard error has
    a line for each.

    Args:
        sides: get the number of the repeat, which can be a seed, and give a figure, such as seconds.
        warm_up: rounds before, which do not count.
    """
    times: Times = {name: [] for name in sides}
    for i in range(-warm_up, repeats):
        for name in [*sides] if i % 2 else [*reversed(sides)]:
            figure = sides[name](max(i, 0))
            print(f"{name}, {f'repeat {i + 1} of {repeats}' if i >= 0 else 'warm-up'}: {figure:.4g}", file=sys.stderr)
            if i >= 0:
                times[name].append(figure)
    return times


def seconds_of(command: Sequence[str], **options) -> float:
    """Wall-clock time of a whole process; what it prints is shown if it fails."""
    return timed(command, **options)[0]


def timed(command: Sequence[str], **options) -> tuple[float, str]:
    """The same, and what it printed."""
    t0 = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    seconds = time.perf_counter() - t0
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds, done.stdout


def threads(number: int) -> dict[str, str]:
    """The environment in which torch and TensorFlow take so many."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {**os.environ, "WANDB_MODE": "disabled", **dict.fromkeys(names, str(number))}


def spread(figures: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(figures):.{digits}f} ({min(figures):.{digits}f} to {max(figures):.{digits}f})"


def table(times: Times, base: str, unit: str, digits: int = 2) -> str:
    """Markdown: median and spread of each side, and of its ratio to `base` in the same repeat."""
    lines = [f"| side | {unit} | times {base} |", "|---|---|---|"]
    for name, figures in times.items():
        ratios = [a / b for a, b in zip(figures, times[base], strict=True)]
        lines.append(f"| {name} | {spread(figures, digits)} | {spread(ratios)} |")
    return "\n".join(lines)


def picture(times: Times, path: Path, title: str, unit: str) -> None:
    """A bar for each side at its median, with a point for each repeat."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 * len(times) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [*times][::-1]
    axes.barh(names, [statistics.median(times[name]) for name in names], color="#9db8d2")
    for y, name in enumerate(names):
        axes.plot(times[name], [y] * len(times[name]), "o", color="#1f3a55", markersize=4)
    figure.suptitle(title)  # over the names of the sides, too
    axes.set_xlabel(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


def conditions(repeats: int) -> str:
    """Machine and versions, for the foot of a table."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = next((line.partition(": ")[2] for line in text.splitlines() if "model name" in line), platform.processor())
    bf16 = "with" if "avx512_bf16" in text or "amx_bf16" in text else "without"
    where = f"{model} {bf16} bfloat16, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{repeats} repeats; {where}; Python {platform.python_version()}, torch {torch.__version__}"
