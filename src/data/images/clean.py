"""Cleaning of image sets: labels that are no class, images that are there twice or in two splits; held-out shares."""

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from src.data.report import Cleaning, count
from src.run.errors import DataError


class Samples(NamedTuple):
    """One split, and where each of its samples comes from: a file or a row."""

    x: np.ndarray  # uint8 [N, C, H, W]
    targets: np.ndarray  # int64 [N], or [N, num_classes] of 0 and 1
    names: Sequence[str]


def two_pairs(loaded: Any, name: str) -> dict[str, Any]:
    """What `load` gave, by its splits; raises DataError where that is not two things."""
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        what = f"{len(loaded)} things" if isinstance(loaded, (tuple, list)) else type(loaded).__name__
        raise DataError(f"{name} gives {what} -> give two pairs: (x, targets), (x, targets)")
    return {"train": loaded[0], "test": loaded[1]}


def from_arrays(sets: dict[str, Any], num_classes: int | None, cleaning: Cleaning) -> dict[str, Samples]:
    """What `load` gave, checked.

    Args:
        sets: split -> (images uint8 [N, C, H, W], labels int64 [N], or [N, num_classes] of 0 and 1).
        num_classes: labels are below it; by default below the first label that train does not have.

    Raises:
        DataError: arrays of another type or shape, or labels that are no class.
    """
    arrays = {split: checked(split, pair) for split, pair in sets.items()}
    shapes = [f"{split} {list(x.shape[1:])} {list(t.shape[1:])}" for split, (x, t) in arrays.items()]
    if len({shape.partition(" ")[2] for shape in shapes}) > 1:
        raise DataError(f"images or labels differ in shape: {', '.join(shapes)} -> give all of them one")
    labels = arrays["train"][1]
    present = np.unique(labels[labels >= 0])
    gap = int((present == np.arange(len(present))).cumprod().sum())
    if labels.ndim == 2 and num_classes not in (None, labels.shape[1]):
        raise DataError(
            f"labels are {list(labels.shape)}, but there are {num_classes} classes -> give a column for each"
        )
    if num_classes is None and labels.ndim == 1 and gap == 1 < len(present):
        raise DataError(f"train: there are labels 0 and {present[1]}, but not 1 -> number the classes 0, 1, 2, ...")
    num_classes = num_classes or (labels.shape[1] if labels.ndim == 2 else gap)
    if not num_classes:
        raise DataError("train: no sample has label 0 -> number the classes 0, 1, 2, ... without gaps")
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
    if targets.ndim == 2 and targets.shape[1] > 1 and bool(np.isin(targets, (0, 1)).all()):
        targets = targets.astype(np.int64)  # several labels for each image
    elif targets.ndim != 1:
        what = "one whole number for each image, [N], or 0s and 1s [N, num_classes]"
        raise DataError(f"{split}: labels are {list(targets.shape)} -> give {what}")
    if len(x) != len(targets):
        raise DataError(f"{split}: {len(x)} images, but {len(targets)} labels -> give one label for each image")
    if not x.size:
        raise DataError(f"the {split} split is empty ({list(x.shape)}) -> give it samples")
    if targets.dtype.kind not in "iu":
        whole = targets == np.floor(targets) if targets.dtype.kind == "f" else np.zeros(len(targets), bool)
        row = int(np.argmin(whole))  # the first that is not whole
        raise DataError(f"{split} row {row}: label {targets[row]!s} is {targets.dtype} -> give int64, 0, 1, 2, ...")
    return x, targets.astype(np.int64)


def at_least_two(class_names: list[str]) -> None:
    if len(class_names) < 2:
        raise DataError(f"there is one class only ({''.join(class_names)}) -> give samples of two classes or more")


def in_range(split: str, x: np.ndarray, targets: np.ndarray, num_classes: int, cleaning: Cleaning) -> Samples:
    wrong = np.asarray(((targets < 0) | (targets >= num_classes)).reshape(len(targets), -1).any(axis=1))
    for i in wrong.nonzero()[0]:
        reason = f"label out of range: {targets[i]} is not in 0..{num_classes - 1}"
        cleaning.skip(split, f"{split} row {i}", reason, "number the classes of train 0, 1, 2, ... without gaps")
    kept = (~wrong).nonzero()[0]
    return Samples(x[kept] if wrong.any() else x, targets[kept], [f"{split} row {i}" for i in kept])


def without_copies(samples: dict[str, Samples], cleaning: Cleaning) -> dict[str, np.ndarray]:
    """Indices of what stays: an image once, in the first of test, val and train that has it; test keeps all of its own.

    Copies in train and val whose labels differ all go, because none is known to be right.
    """
    hashed = {split: [blake2b(x.tobytes(), digest_size=16).digest() for x in s.x] for split, s in samples.items()}
    labels: dict[bytes, dict[bytes, str]] = {}  # image -> label -> the first sample that has both
    for split in samples.keys() - {"test"}:
        for key, target, name in zip(hashed[split], samples[split].targets, samples[split].names, strict=True):
            labels.setdefault(key, {}).setdefault(target.tobytes(), name)
    if "test" in samples:
        tell_copies(samples["test"].targets, hashed["test"], cleaning)
    first: dict[bytes, tuple[str, str]] = {}
    kept: dict[str, np.ndarray] = {}
    for split in [name for name in ("test", "val", "train") if name in samples]:
        stays = []
        for i, (key, name) in enumerate(zip(hashed[split], samples[split].names, strict=True)):
            where, other = first.setdefault(key, (split, name))
            if split == "test":
                stays.append(i)
            elif where != "test" and len(labels[key]) > 1:
                own = samples[split].targets[i].tobytes()
                other = next(place for label, place in labels[key].items() if label != own)
                cleaning.remove(split, name, "two labels", other)
            elif (where, other) != (split, name):
                cleaning.remove(split, name, "duplicate" if where == split else f"also in {where}", other)
            else:
                stays.append(i)
        kept[split] = np.array(stays, np.int64)
    return kept


def tell_copies(targets: np.ndarray, keys: list[bytes], cleaning: Cleaning) -> None:
    """Note the images that test has more than once; of those with several labels, one label can be right."""
    labels: dict[bytes, Counter[bytes]] = {}
    for key, target in zip(keys, targets, strict=True):
        labels.setdefault(key, Counter())[target.tobytes()] += 1
    if copies := len(keys) - len(labels):
        most = sum(max(found.values()) for found in labels.values())
        wrong = f"; some have other labels: at most {most} of {len(keys)} can be right" if most < len(keys) else ""
        cleaning.notes.append(f"copies of its own images in test: {copies}{wrong}")


def stratified(
    targets: np.ndarray, frac: float, key: str = "data.val_frac", class_names: Sequence[str] = (), least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rest and of a share of each class (of several labels, of all samples); always the same ones.
    Raises DataError where a class has fewer than the least samples, or the rest would be too few."""
    from sklearn.model_selection import train_test_split

    per_class = count(targets, len(class_names)).tolist()
    if few := [k for k, n in enumerate(per_class) if n < least]:
        name, n = class_names[few[0]] if class_names else few[0], per_class[few[0]]
        usable = f"{n} usable image{'s' * (n != 1)}, {least} are needed"
        raise DataError(f"class {name} has {usable} -> add some, or take the class out")
    num_groups = len(per_class) if targets.ndim == 1 else 1
    num_held = max(math.ceil(frac * len(targets)), num_groups)
    if len(targets) - num_held < num_groups:
        raise DataError(f"{key}: {frac} of {len(targets)} images leaves too few for {num_groups} classes -> lower it")
    groups = targets if targets.ndim == 1 else None
    rest, part = train_test_split(np.arange(len(targets)), test_size=num_held, stratify=groups, random_state=0)
    if groups is not None:  # a small class may have got nothing
        lack = [k for k, n in enumerate(per_class) if n and k not in targets[part]]
        part = np.append(part, [next(i for i in np.sort(rest) if targets[i] == k) for k in lack]).astype(np.int64)
    return np.setdiff1d(np.arange(len(targets)), part), np.sort(part)
