"""Image sets that are arrays: scikit-learn's digits, those of torchvision, and what a `load` of your own gives."""

from pathlib import Path
from typing import Any

import numpy as np

from src.data.images.samples import Samples, stratified
from src.data.report import Cleaning
from src.run.errors import DataError

Images = tuple[np.ndarray, np.ndarray]  # uint8 [N, C, H, W], int64 [N]


def digits() -> tuple[Images, Images]:
    """Handwritten digits of 43 people (Alpaydin and Kaynak, 1998); a fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images * 255 / 16).round().astype(np.uint8)[:, None]  # [N, 1, 8, 8]
    targets = bunch.target.astype(np.int64)
    train, test = stratified(targets, 0.2)
    return (x[train], targets[train]), (x[test], targets[test])


def torchvision_set(name: str, data_dir: Path, download: bool) -> tuple[tuple[Images, Images], list[str]]:
    """Its training and test images, and the names of its classes; raises DataError where it cannot be read."""
    import torchvision

    make = getattr(torchvision.datasets, name)
    try:
        train, test = (make(data_dir, train=is_train, download=download) for is_train in (True, False))
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as e:  # the last are of damaged files
        hint = "a download needs a network" if download else "give data.data_dir, or --data.download true"
        what = (str(e) or f"damaged, {type(e).__name__}").splitlines()[0]
        raise DataError(f"{name} in {data_dir}: {what} -> {hint}") from e
    class_names = [class_name.partition(" - ")[0] for class_name in train.classes]  # MNIST's are like "7 - seven"
    return (to_images(train), to_images(test)), class_names


def to_images(dataset: Any) -> Images:
    x, targets = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x), targets


def checked(
    loaded: Any, source: str, class_names: list[str], cleaning: Cleaning
) -> tuple[dict[str, Samples], list[str]]:
    """The samples of train and test, and the names of the classes: by default their numbers, as train has them.

    Args:
        loaded: two pairs of images uint8 [N, C, H, W] and labels int64 [N].
        source: what gave it, for errors.
    """
    try:
        both = zip(("train", "test"), loaded, strict=True)
        pairs = {split: (np.asarray(x), np.asarray(targets)) for split, (x, targets) in both}
        for split, (x, targets) in pairs.items():
            check(split, x, targets)
    except (TypeError, ValueError) as e:
        raise DataError(f"{source}: {e} -> give two pairs of images and labels: (x, targets), (x, targets)") from e
    shapes = [list(x.shape[1:]) for x, _ in pairs.values()]
    if shapes[0] != shapes[1]:
        raise DataError(f"images differ in shape: train {shapes[0]}, test {shapes[1]} -> give all of them one")
    cleaning.came_in = sum(len(x) for x, _ in pairs.values())
    if not class_names:
        class_names = [str(k) for k in np.unique(pairs["train"][1]) if k >= 0]
        if class_names != [str(k) for k in range(len(class_names))]:
            found = ", ".join(class_names[:10])
            raise DataError(f"train: there are labels {found} -> number the classes 0, 1, 2, ... without gaps")
    return {split: in_range(split, *pair, len(class_names), cleaning) for split, pair in pairs.items()}, class_names


def check(split: str, x: np.ndarray, targets: np.ndarray) -> None:
    if x.dtype != np.uint8 or x.ndim != 4:
        raise DataError(f"{split}: images are {x.dtype} {list(x.shape)} -> give uint8 [N, C, H, W]")
    if min(x.shape[1:3]) >= 8 and x.shape[3] in (1, 3):
        raise DataError(f"{split}: images {list(x.shape)} seem to be [N, H, W, C] -> x.transpose(0, 3, 1, 2)")
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        what = f"labels are {targets.dtype} {list(targets.shape)}"
        raise DataError(f"{split}: {what} -> give one whole number for each image, int64 [N]")
    if len(x) != len(targets):
        raise DataError(f"{split}: {len(x)} images, but {len(targets)} labels -> give one label for each image")


def in_range(split: str, x: np.ndarray, targets: np.ndarray, num_classes: int, cleaning: Cleaning) -> Samples:
    is_class = (targets >= 0) & (targets < num_classes)
    for i in np.flatnonzero(~is_class):
        reason = f"label out of range: {targets[i]} is not in 0..{num_classes - 1}"
        cleaning.skip(split, f"{split} row {i}", reason, "number the classes of train 0, 1, 2, ... without gaps")
    samples = Samples(x, targets.astype(np.int64), [f"{split} row {i}" for i in range(len(x))])
    return samples if is_class.all() else samples.take(np.flatnonzero(is_class))
