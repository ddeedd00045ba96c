"""Samples held out for validation and testing, the same share of each class."""

import math
from collections.abc import Sequence

import numpy as np

from src.data.report import class_counts
from src.run.errors import DataError


def stratified(
    targets: np.ndarray, frac: float, key: str = "data.val_frac", class_names: Sequence[str] = (), least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rest and of what is held out, a share of each class; always the same ones.

    Raises:
        DataError: a class has fewer than `least` samples, or the rest would be too few.
    """
    from sklearn.model_selection import train_test_split

    per_class = class_counts(targets, len(class_names)).tolist()
    if few := [k for k, n in enumerate(per_class) if n < least]:
        name, n = class_names[few[0]] if class_names else few[0], per_class[few[0]]
        usable = f"{n} usable sample{'s' * (n != 1)}, {least} are needed"
        raise DataError(f"class {name} has {usable} -> add some, or take the class out")
    num_classes = len(per_class)
    num_held = max(math.ceil(frac * len(targets)), num_classes)
    if len(targets) - num_held < num_classes:
        raise DataError(f"{key}: {frac} of {len(targets)} samples leaves too few for {num_classes} classes -> lower it")
    rest, held = train_test_split(np.arange(len(targets)), test_size=num_held, stratify=targets, random_state=0)
    missing = [k for k in range(num_classes) if k not in targets[held]]  # a small class may have got nothing
    held = np.append(held, [next(i for i in np.sort(rest) if targets[i] == k) for k in missing]).astype(np.int64)
    return np.setdiff1d(np.arange(len(targets)), held), np.sort(held)
