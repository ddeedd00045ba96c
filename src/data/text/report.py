import re
from typing import Any

import numpy as np

from src.data.report import total_variation

ENDS = r"\n|(?<=[.!?])\s+|(?<=[。！？])"  # of lines and sentences


LONG_LINE = 40  # characters; shorter ones come again by chance


def text_split(text: str, tokens: np.ndarray) -> dict[str, Any]:
    num_bytes = len(text.encode())
    return {"tokens": len(tokens), "bytes": num_bytes, "bytes_per_token": num_bytes / max(1, len(tokens))}


def text_shift(texts: dict[str, str], tokens: dict[str, np.ndarray], split: str) -> dict[str, float]:
    """How far a split is from train, and how much of it train has verbatim (in lines and sentences of 40 characters
    or more)."""
    size = 1 + max(int(tokens[s].max(initial=0)) for s in ("train", split))
    train, other = (np.bincount(tokens[s], minlength=size) for s in ("train", split))
    long = [line for line in re.split(ENDS, texts[split]) if len(line) >= LONG_LINE]
    known = set(re.split(ENDS, texts["train"]))
    found = {
        "token_shares": total_variation(other, train),
        "unseen_tokens": float(other[train == 0].sum() / max(1, other.sum())),
        "lines_in_train": sum(line in known for line in long) / max(1, len(long)),
    }
    return {name: round(value, 4) for name, value in found.items()}
