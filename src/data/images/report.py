"""Figures of images for the data report: samples of each class, mean and deviation of each channel, and their shift."""

from typing import Any

import numpy as np

from src.data.cache import Rows
from src.data.report import class_counts, total_variation


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


def image_split(x: np.ndarray | Rows, targets: np.ndarray, num_classes: int) -> dict[str, Any]:
    mean, std = channel_moments(x)
    return {"samples": len(targets), "per_class": class_counts(targets, num_classes).tolist(), "mean": mean, "std": std}


def image_shift(report: dict[str, Any]) -> dict[str, Any]:
    """How far val and test are from train: means in train's standard deviations, class shares as total variation."""
    train, out = report["train"], {}
    for split in ("val", "test"):
        other = report[split]
        mean = (np.array(other["mean"]) - train["mean"]) / train["std"]
        shares = total_variation(np.array(other["per_class"]), np.array(train["per_class"]))
        out[split] = {"mean": mean.round(4).tolist(), "class_shares": round(shares, 4)}
    return out
