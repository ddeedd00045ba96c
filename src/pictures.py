"""Figures of runs, drawn with matplotlib without a display."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]  # steps [T], values [T]


def figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # takes half a second to load

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def save(fig: "Figure", path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    tmp = path.with_name(path.name + ".tmp")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that matplotlib's font lacks, one for each letter
        fig.savefig(tmp, format="png")
    tmp.rename(path)


def curves(runs: Mapping[str, Sequence[Mapping[str, Curve]]]) -> "Figure":
    """A panel for each kind of metric (loss, acc, ...) of training and validation, a line for each group of runs.

    Args:
        runs: by label; the runs of one label differ in their seed only, and are drawn as their mean and range.
    """
    names = {name for group in runs.values() for run in group for name in run if name.startswith(("train/", "val/"))}
    kinds = sorted({name.partition("/")[2] for name in names}, key=lambda kind: (kind != "loss", kind))
    fig, several = figure(6.4, 3.6 * max(1, len(kinds))), len(runs) > 1
    for axes, kind in zip(np.atleast_1d(fig.subplots(max(1, len(kinds)))), kinds, strict=False):
        for color, (label, group) in enumerate(runs.items()):
            for split, style in (("train", "-"), ("val", "--")):
                drawn = [run[f"{split}/{kind}"] for run in group if f"{split}/{kind}" in run]
                if drawn:
                    text = f"{label} {split}" if several else split
                    band(axes, drawn, text, f"C{color if several else int(split == 'val')}", style)
        axes.set(title=kind, xlabel="optimizer step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return fig


def band(axes: "Axes", drawn: list[Curve], label: str, color: str, style: str) -> None:
    """The mean of several curves and, behind it, their range."""
    length = min(len(steps) for steps, _ in drawn)
    steps, values = drawn[0][0][:length], np.stack([v[:length] for _, v in drawn])
    (line,) = axes.plot(steps, values.mean(0), style, color=color, label=label, marker="." if length < 3 else None)
    if len(drawn) > 1:
        axes.fill_between(steps, values.min(0), values.max(0), alpha=0.2, color=line.get_color(), linewidth=0)


def confusion(counts: np.ndarray, names: Sequence[str]) -> "Figure":
    """counts [num_classes, num_classes], rows are targets; each row is coloured by its shares.

    Source: the usual confusion matrix, as in scikit-learn's ConfusionMatrixDisplay.
    """
    size = len(counts)
    fig = figure(*[min(14.0, 3.0 + 0.4 * size)] * 2)
    axes = fig.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="targets against predictions, test", xlabel="prediction", ylabel="target")
    if size <= 30:
        turn = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(size), names, rotation=turn, parse_math=False)
        axes.set_yticks(range(size), names, parse_math=False)
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(j, i, counts[i, j], ha="center", va="center", color="w" if shares[i, j] > 0.5 else "k", size=8)
    return fig


def images(x: np.ndarray, titles: Sequence[str]) -> "Figure":
    """x [N, C, H, W] in any range; each channel is stretched over all images. Where they are not 1 or 3, their mean."""
    x = x if x.shape[1] in (1, 3) else x.mean(1, keepdims=True)
    low, high = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.min, np.max))
    shown = ((x - low) / np.maximum(high - low, 1e-8)).transpose(0, 2, 3, 1)
    columns = min(8, len(x))
    lines = -(-len(x) // columns)
    fig = figure(columns, 1.25 * lines)
    for axes, image, title in zip(fig.subplots(lines, columns, squeeze=False).flat, shown, titles, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8, parse_math=False)
    for axes in fig.axes:
        axes.set_axis_off()
    return fig


def text(samples: Sequence[str]) -> "Figure":
    """Each sample as one line; line ends are shown as ⏎."""
    fig = figure(10, 0.3 * len(samples) + 0.2)
    for i, sample in enumerate(samples):
        shown, place = sample.replace("\n", "⏎")[:110], 1 - (i + 0.5) / len(samples)
        fig.text(0.01, place, shown, family="monospace", size=8, va="center", parse_math=False)
    return fig
