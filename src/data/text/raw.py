"""Texts as users have them, in windows."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from src.data.loader import Batch
from src.data.report import Cleaning
from src.data.text.reading import read, source_files
from src.run.errors import DataError

AT_ONCE = 64  # windows, unless a text has more


def texts(raw: Any, cleaning: Cleaning) -> Iterator[tuple[str, str]]:
    """A text, a list of texts, a file, a folder, or of `-` the lines of standard input, each with its name."""
    if isinstance(raw, (list, tuple)) and all(isinstance(one, str) for one in raw):
        yield from ((str(i), text) for i, text in enumerate(raw))
    elif isinstance(raw, (str, Path)) and str(raw) == "-":
        yield from ((str(i), line.rstrip("\n")) for i, line in enumerate(sys.stdin))
    elif isinstance(raw, Path) or (isinstance(raw, str) and os.path.exists(raw)):
        for path in source_files([str(raw)])[0]:
            found = read([path], cleaning)
            cleaning.came_in += not found
            yield from found.items()
    elif isinstance(raw, str):
        yield "0", raw
    else:
        raise DataError(f"{type(raw).__name__} is no text -> give one, a list of them, or the name of a file")


def text_windows(tokens: Tensor, seq_len: int, number: int) -> Batch:
    """All tokens [T] in windows that follow each other, but the last one, which ends with the text: each token but the
    first is a target once, and `last` is the place of the last token, -1 in other windows; `index` is the number."""
    size = min(seq_len, len(tokens))
    starts = torch.tensor([*range(0, len(tokens) - size, size), len(tokens) - size])
    at = starts[:, None] + torch.arange(size)
    ends = torch.cat([torch.zeros(1, dtype=torch.long), starts[:-1] + size])  # of the window before, which has those
    targets = pad(tokens, (0, 1), value=-100)[at + 1].masked_fill(at + 1 <= ends[:, None], -100)
    last = torch.where(starts == starts[-1], size - 1, -1)
    return {"x": tokens[at], "targets": targets, "last": last, "index": torch.full_like(starts, number)}


def joined(parts: list[Batch]) -> Batch:
    """In one batch; short windows are filled up, at their end, which nothing before it sees."""
    width = max(part["x"].shape[1] for part in parts)
    fill = {"x": 0, "targets": -100}
    wide = {name: [pad(p[name], (0, width - p[name].shape[1]), value=v) for p in parts] for name, v in fill.items()}
    return {name: torch.cat(wide.get(name) or [part[name] for part in parts]) for name in parts[0]}
