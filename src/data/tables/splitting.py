"""Which rows are train, val and test. Nothing here depends on the seed of a run."""

from typing import Literal

import numpy as np
import polars as pl

from src.data.report import SPLITS
from src.run.errors import DataError

Split = Literal["random", "stratified", "group", "time", "column"]
Shares = dict[str, float]  # of the rows, for the splits that are held out, the last in time first
TRAIN, VAL, TEST = range(3)  # places in SPLITS
WORDS = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "dev": VAL, "test": TEST}


def divide(how: Split, by: pl.Series | None, classes: np.ndarray | None, count: int, shares: Shares) -> np.ndarray:
    """The split of each of `count` rows, int8 [count].

    Args:
        by: values of the column that `group`, `time` and `column` go by.
        classes: of the rows [count], of which each split gets the same share.
    """
    if how == "column":
        assert by is not None
        return by_word(by, classes, shares)
    if how == "group" and by is not None:
        return by_group(by, shares)
    if how == "time" and by is not None:
        return by_time(by, shares)
    return by_chance(np.zeros(count, np.int8) if classes is None else classes, shares)


def by_chance(classes: np.ndarray, shares: Shares) -> np.ndarray:
    """The same share of each class, and at least one of its rows."""
    out = np.full(len(classes), TRAIN, np.int8)
    order = np.random.default_rng(0).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
        start = 0
        for split, share in shares.items():
            end = start + max(1, round(share * len(rows)))
            out[rows[start:end]], start = SPLITS.index(split), end
    return out


def by_group(by: pl.Series, shares: Shares) -> np.ndarray:
    """Whole groups, drawn by chance as long as they fit; where none fits, the smallest."""
    groups = by.rank("dense").to_numpy() - 1
    sizes = np.bincount(groups)
    if len(sizes) <= len(shares):
        what = f"data.split_by: column {by.name} has {len(sizes)} groups"
        raise DataError(f"{what} -> take one with more than {len(shares)}")
    chosen = np.full(len(sizes), TRAIN, np.int8)
    order, room = np.random.default_rng(0).permutation(len(sizes)), {s: share * len(by) for s, share in shares.items()}
    for group in order:
        if split := next((s for s in room if sizes[group] <= room[s]), None):
            chosen[group], room[split] = SPLITS.index(split), room[split] - sizes[group]
    for split in shares:
        if SPLITS.index(split) not in chosen:
            left = np.flatnonzero(chosen == TRAIN)
            chosen[left[np.argmin(sizes[left])]] = SPLITS.index(split)
    return chosen[groups]


def by_time(by: pl.Series, shares: Shares) -> np.ndarray:
    """Train is before val, val before test; rows of one time stay together."""
    times = by.to_physical().to_numpy()
    ordered, out = np.sort(times), np.full(len(times), TRAIN, np.int8)
    end, before = len(times), np.ones(len(times), bool)
    for split, share in shares.items():
        end = int(np.searchsorted(ordered, ordered[max(0, end - max(1, round(share * len(times))))])) if end else 0
        held = before & (times >= ordered[end])
        out[held], before = SPLITS.index(split), before & ~held
    if not before.any():
        raise DataError(f"data.split_by: column {by.name} has too few different times -> split in another way")
    return out


def by_word(by: pl.Series, classes: np.ndarray | None, shares: Shares) -> np.ndarray:
    """As a column says; splits that it does not name are held out of train by chance."""
    words = by.str.to_lowercase()
    if unknown := words.filter(~words.is_in(list(WORDS))).unique().sort().to_list():
        what = f"data.split_by: column {by.name} has {', '.join(map(repr, unknown[:5]))}"
        raise DataError(f"{what} -> it may have train, val and test")
    out = words.replace_strict(WORDS, return_dtype=pl.Int8).to_numpy().copy()
    left = {split: share for split, share in shares.items() if SPLITS.index(split) not in out}
    train = np.flatnonzero(out == TRAIN)
    if left and len(train):
        out[train] = by_chance(np.zeros(len(train)) if classes is None else classes[train], left)
    return out
