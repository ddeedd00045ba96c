"""Samples of images: cleaned of copies, split, and measured for the data report."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from src.data.cache import Rows
from src.data.report import Cleaning, total_variation
from src.run.errors import DataError


class Samples(NamedTuple):
    """One split, and where each of its samples comes from: a file or a row."""

    x: np.ndarray | Rows  # uint8 [N, C, H, W]
    targets: np.ndarray  # int64 [N], -1 where unknown
    names: Sequence[str]

    def take(self, index: np.ndarray) -> "Samples":
        return Samples(Rows(self.x, index), self.targets[index], [self.names[i] for i in index])


def without_copies(samples: dict[str, Samples], cleaning: Cleaning) -> dict[str, Samples]:
    """What stays: an image once, in the first of test, val and train that has it; test keeps all of its own.

    Copies in train and val whose labels differ all go, because none is known to be right.
    """
    hashes = {split: [blake2b(x.tobytes(), digest_size=16).digest() for x in s.x[:]] for split, s in samples.items()}
    labels: dict[bytes, dict[int, str]] = {}  # image in train or val -> label -> the first sample that has both
    for split in samples.keys() - {"test"}:
        for image, target, name in zip(
            hashes[split], samples[split].targets.tolist(), samples[split].names, strict=True
        ):
            labels.setdefault(image, {}).setdefault(target, name)
    first: dict[bytes, tuple[str, str]] = {}  # image -> its split and name
    out: dict[str, Samples] = {}
    for split in [name for name in ("test", "val", "train") if name in samples]:
        kept = []
        for i, (image, name) in enumerate(zip(hashes[split], samples[split].names, strict=True)):
            first_split, first_name = first.setdefault(image, (split, name))
            others = [n for label, n in labels.get(image, {}).items() if label != samples[split].targets[i]]
            if split == "test":
                kept.append(i)
            elif others and first_split != "test":
                cleaning.remove(split, name, "two labels", others[0])
            elif (first_split, first_name) == (split, name):
                kept.append(i)
            else:
                reason = "duplicate" if first_split == split else f"also in {first_split}"
                cleaning.remove(split, name, reason, first_name)
        out[split] = samples[split].take(np.array(kept, np.int64))
    return out


def stratified(
    targets: np.ndarray, frac: float, key: str = "data.val_frac", class_names: list[str] | None = None, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rest and of what is held out, a share of each class; always the same ones. Raises DataError where
    a class has fewer than `least` samples, or the rest would be too few."""
    from sklearn.model_selection import train_test_split

    class_names = class_names or [str(k) for k in range(targets.max() + 1)]
    num_classes, per_class = len(class_names), np.bincount(targets, minlength=len(class_names)).tolist()
    if min(per_class) < least:
        name = class_names[per_class.index(min(per_class))]
        usable = f"{min(per_class)} usable sample{'s' * (min(per_class) != 1)}, {least} are needed"
        raise DataError(f"class {name} has {usable} -> add some, or take the class out")
    num_held = max(math.ceil(frac * len(targets)), num_classes)
    if len(targets) - num_held < num_classes:
        raise DataError(f"{key}: {frac} of {len(targets)} samples leaves too few for {num_classes} classes -> lower it")
    rest, held = train_test_split(np.arange(len(targets)), test_size=num_held, stratify=targets, random_state=0)
    missing = np.setdiff1d(range(num_classes), targets[held])  # a small class may have got nothing
    held = np.append(held, [rest[targets[rest] == k].min() for k in missing]).astype(np.int64)
    return np.setdiff1d(np.arange(len(targets)), held), np.sort(held)


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


def figures(splits: dict[str, Samples], class_names: list[str]) -> dict[str, Any]:
    """The data report of each split; raises DataError where train lacks a class. Its `shift` is how far val and test
    are from train: means in train's standard deviations, class shares as total variation."""
    out: dict[str, Any] = {}
    for split, (x, targets, _) in splits.items():
        mean, std = channel_moments(x)
        per_class = np.bincount(targets[targets >= 0], minlength=len(class_names)).tolist()
        out[split] = {"samples": len(targets), "per_class": per_class, "mean": mean, "std": std}
    if not (train := out.get("train")):
        return out
    if 0 in train["per_class"]:
        name = class_names[train["per_class"].index(0)]
        raise DataError(f"class {name}: train has no usable sample that is not in test or val -> add some")
    out["shift"] = {}
    for split in ("val", "test"):
        mean = (np.array(out[split]["mean"]) - train["mean"]) / train["std"]
        shares = total_variation(np.array(out[split]["per_class"]), np.array(train["per_class"]))
        out["shift"][split] = {"mean": mean.round(4).tolist(), "class_shares": round(shares, 4)}
    return out
