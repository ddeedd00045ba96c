"""Train, val and test of a text: by position, or by whole documents."""

import hashlib

from src.data.report import SPLITS
from src.run.errors import DataError


def divide(documents: list[str], split_by: str, val_frac: float, test_frac: float) -> dict[str, str]:
    """The text of each split: train first, then val, then test."""
    if split_by == "position":
        text = "\n".join(documents)
        a, b = int(len(text) * (1 - val_frac - test_frac)), int(len(text) * (1 - test_frac))
        return {"train": text[:a], "val": text[a:b], "test": text[b:]}
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in documents:
        u = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
        parts["val" if u < val_frac else "test" if u < val_frac + test_frac else "train"].append(text)
    for split, frac in (("train", 1.0), ("val", val_frac), ("test", test_frac)):
        if frac and not parts[split]:
            few = f"data.split_by: none of {len(documents)} documents fell to {split}"
            raise DataError(f"{few} -> take split_by position, or more documents")
    return {split: "\n".join(texts) for split, texts in parts.items()}
