"""Figures of images for the data report: samples of each class, mean and deviation of each channel, and their shift."""

from typing import Any

import numpy as np

from src.data.cache import Rows
from src.data.report import class_counts, total_variation
from src.run.errors import DataError


def channel_moments(x: np.ndarray | Rows) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (1 if constant) of each channel of uint8 x [N, C, H, W], as if in [0, 1]; exact."""
    counts = np.zeros((x.shape[1], 256), np.int64)
    step = max(1, 2**24 // max(1, x[:1].size))
    for start in range(0, len(x), step):
        part = np.asarray(x[start : start + step])
        counts += [np.bincount(part[:, c].ravel(), minlength=256) for c in range(x.shape[1])]
    values, total = np.arange(256) / 255, np.maximum(counts.sum(1), 1)
    mean = counts @ values / total
    std = np.sqrt(np.maximum(counts @ values**2 / total - mean**2, 0))
    return mean.tolist(), np.where(std < 1e-6, 1, std).tolist()


def figures(splits: dict[str, tuple[np.ndarray | Rows, np.ndarray]], class_names: list[str]) -> dict[str, Any]:
    """The data report of each split's (x, targets); raises DataError where train lacks a class."""
    out: dict[str, Any] = {}
    for split, (x, targets) in splits.items():
        mean, std = channel_moments(x)
        per_class = class_counts(targets, len(class_names)).tolist()
        out[split] = {"samples": len(targets), "per_class": per_class, "mean": mean, "std": std}
    if "train" not in out:
        return out
    if 0 in out["train"]["per_class"]:
        name = class_names[out["train"]["per_class"].index(0)]
        raise DataError(f"class {name}: train has no usable sample that is not in test or val -> add some")
    return out | {"shift": {split: shift(out["train"], out[split]) for split in ("val", "test")}}


def shift(train: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How far a split is from train: means in train's standard deviations, class shares as total variation."""
    mean = (np.array(other["mean"]) - train["mean"]) / train["std"]
    shares = total_variation(np.array(other["per_class"]), np.array(train["per_class"]))
    return {"mean": mean.round(4).tolist(), "class_shares": round(shares, 4)}
