"""Image sets that are no folder: scikit-learn's digits, and those of torchvision."""

from pathlib import Path
from typing import Any

import numpy as np

from src.data.splits import stratified
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
