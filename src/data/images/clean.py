"""Cleaning of image sets: labels that are no class, images that are there twice or in two splits."""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from src.data.cache import Rows
from src.data.report import Cleaning
from src.run.errors import DataError


class Samples(NamedTuple):
    """One split, and where each of its samples comes from: a file or a row."""

    x: np.ndarray | Rows  # uint8 [N, C, H, W]
    targets: np.ndarray  # int64 [N]
    names: Sequence[str]

    def take(self, index: np.ndarray) -> "Samples":
        return Samples(Rows(self.x, index), self.targets[index], [self.names[i] for i in index])


def from_arrays(loaded: Any, source: str, num_classes: int | None, cleaning: Cleaning) -> dict[str, Samples]:
    """What `load` gave, checked.

    Args:
        loaded: two pairs of images uint8 [N, C, H, W] and labels int64 [N].
        source: what gave it, for errors.
        num_classes: labels are below it; by default below the first label that train does not have.

    Raises:
        DataError: arrays of another type or shape, or labels that are no class.
    """
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        what = f"{len(loaded)} things" if isinstance(loaded, (tuple, list)) else type(loaded).__name__
        raise DataError(f"{source} gives {what} -> give two pairs: (x, targets), (x, targets)")
    arrays = {split: checked(split, pair) for split, pair in zip(("train", "test"), loaded, strict=True)}
    train, test = (list(x.shape[1:]) for x, _ in arrays.values())
    if train != test:
        raise DataError(f"images differ in shape: train {train}, test {test} -> give all of them one")
    cleaning.came_in = sum(len(targets) for _, targets in arrays.values())
    num_classes = num_classes or count_classes(arrays["train"][1])
    at_least_two([str(k) for k in range(num_classes)])
    return {split: in_range(split, x, targets, num_classes, cleaning) for split, (x, targets) in arrays.items()}


def checked(split: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        x, targets = (np.asarray(array) for array in pair)
    except (TypeError, ValueError) as e:
        raise DataError(f"{split}: no pair of images and labels ({e}) -> load() gives two such pairs") from e
    if x.dtype != np.uint8 or x.ndim != 4:
        raise DataError(f"{split}: images are {x.dtype} {list(x.shape)} -> give uint8 [N, C, H, W]")
    if min(x.shape[1:3]) >= 8 and x.shape[3] in (1, 3):
        raise DataError(f"{split}: images {list(x.shape)} seem to be [N, H, W, C] -> x.transpose(0, 3, 1, 2)")
    if targets.ndim != 1:
        raise DataError(f"{split}: labels are {list(targets.shape)} -> give one whole number for each image, [N]")
    if len(x) != len(targets):
        raise DataError(f"{split}: {len(x)} images, but {len(targets)} labels -> give one label for each image")
    if not x.size:
        raise DataError(f"the {split} split is empty ({list(x.shape)}) -> give it samples")
    if targets.dtype.kind not in "iu":
        whole = targets == np.floor(targets) if targets.dtype.kind == "f" else np.zeros(len(targets), bool)
        row = int(np.argmin(whole))  # the first that is not whole
        raise DataError(f"{split} row {row}: label {targets[row]!s} is {targets.dtype} -> give int64, 0, 1, 2, ...")
    return x, targets.astype(np.int64)


def count_classes(targets: np.ndarray) -> int:
    """How many of the labels 0, 1, 2, ... there are before the first that is missing."""
    present = np.unique(targets[targets >= 0])
    num_classes = int((present == np.arange(len(present))).cumprod().sum())
    if num_classes == 0:
        raise DataError("train: no sample has label 0 -> number the classes 0, 1, 2, ... without gaps")
    if num_classes == 1 < len(present):
        raise DataError(f"train: there are labels 0 and {present[1]}, but not 1 -> number the classes 0, 1, 2, ...")
    return num_classes


def at_least_two(class_names: list[str]) -> None:
    if len(class_names) < 2:
        raise DataError(f"there is one class only ({''.join(class_names)}) -> give samples of two classes or more")


def in_range(split: str, x: np.ndarray, targets: np.ndarray, num_classes: int, cleaning: Cleaning) -> Samples:
    wrong = (targets < 0) | (targets >= num_classes)
    for i in wrong.nonzero()[0]:
        reason = f"label out of range: {targets[i]} is not in 0..{num_classes - 1}"
        cleaning.skip(split, f"{split} row {i}", reason, "number the classes of train 0, 1, 2, ... without gaps")
    kept = (~wrong).nonzero()[0]
    return Samples(x[kept] if wrong.any() else x, targets[kept], [f"{split} row {i}" for i in kept])


def without_copies(samples: dict[str, Samples], cleaning: Cleaning) -> dict[str, Samples]:
    """What stays: an image once, in the first of test, val and train that has it; test keeps all of its own.

    Copies in train and val whose labels differ all go, because none is known to be right.
    """
    hashes = {split: [blake2b(x.tobytes(), digest_size=16).digest() for x in s.x[:]] for split, s in samples.items()}
    labels: dict[bytes, dict[int, str]] = {}  # image -> label -> the first sample that has both
    for split in samples.keys() - {"test"}:
        for image, target, name in zip(hashes[split], samples[split].targets, samples[split].names, strict=True):
            labels.setdefault(image, {}).setdefault(int(target), name)
    if "test" in samples:
        note_copies(samples["test"].targets, hashes["test"], cleaning)
    first: dict[bytes, tuple[str, str]] = {}  # image -> its split and name
    out: dict[str, Samples] = {}
    for split in [name for name in ("test", "val", "train") if name in samples]:
        kept = []
        for i, (image, name) in enumerate(zip(hashes[split], samples[split].names, strict=True)):
            first_split, first_name = first.setdefault(image, (split, name))
            if split == "test" or ((first_split, first_name) == (split, name) and len(labels[image]) == 1):
                kept.append(i)
            elif first_split == "test" or len(labels[image]) == 1:
                reason = "duplicate" if first_split == split else f"also in {first_split}"
                cleaning.remove(split, name, reason, first_name)
            else:
                other = next(n for label, n in labels[image].items() if label != samples[split].targets[i])
                cleaning.remove(split, name, "two labels", other)
        out[split] = samples[split].take(np.array(kept, np.int64))
    return out


def note_copies(targets: np.ndarray, hashes: list[bytes], cleaning: Cleaning) -> None:
    """Note the images that test has more than once; of those with several labels, one label can be right."""
    labels: dict[bytes, Counter[int]] = {}
    for image, target in zip(hashes, targets.tolist(), strict=True):
        labels.setdefault(image, Counter())[target] += 1
    if copies := len(hashes) - len(labels):
        most = sum(max(found.values()) for found in labels.values())
        wrong = f"; some have other labels: at most {most} of {len(hashes)} can be right" if most < len(hashes) else ""
        cleaning.notes.append(f"copies of its own images in test: {copies}{wrong}")
