"""Figures of text for the data report: tokens and bytes of each split, and how far it is from train."""

import re
from typing import Any

import numpy as np

from src.data.report import total_variation

ENDS = r"\n|(?<=[.!?])\s+|(?<=[。！？])"  # of lines and sentences
LONG_LINE = 40  # characters; shorter ones come again by chance


def figures(parts: dict[str, str], tokens: dict[str, np.ndarray]) -> dict[str, Any]:
    """The data report of each split's text and tokens; without a test split, val stands for it."""
    out: dict[str, Any] = {}
    for split, text in parts.items():
        size, count = len(text.encode()), len(tokens[split])
        out[split] = {"tokens": count, "bytes": size, "bytes_per_token": size / max(1, count)}
    if "train" not in out:
        return out
    found = {split: shift(parts, tokens, split) for split in ("val", "test") if parts[split]}
    if not parts["test"]:
        out["test"] = {"same_as": "val", **out["val"]}
    return out | {"shift": {"test": found.get("test", found.get("val", {})), **found}}


def shift(parts: dict[str, str], tokens: dict[str, np.ndarray], split: str) -> dict[str, float]:
    """How far a split is from train, and how much of it train has verbatim (in lines and sentences of 40 characters
    or more)."""
    size = 1 + max(int(tokens[s].max(initial=0)) for s in ("train", split))
    train, other = (np.bincount(tokens[s], minlength=size) for s in ("train", split))
    long = [line for line in re.split(ENDS, parts[split]) if len(line) >= LONG_LINE]
    known = set(re.split(ENDS, parts["train"]))
    found = {
        "token_shares": total_variation(other, train),
        "unseen_tokens": float(other[train == 0].sum() / max(1, other.sum())),
        "lines_in_train": sum(line in known for line in long) / max(1, len(long)),
    }
    return {name: round(value, 4) for name, value in found.items()}
