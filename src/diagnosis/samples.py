"""Samples of loaders: at random for the questions to the data, and as an epoch gives them."""

import re
import time
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from src.data.loader import Arrays

LOADED, LOADED_BYTES, LOAD_SEC = 4000, 2**27, 4.0  # of a loader's samples that are looked at, at most
TARGETS = r"y|targets?|labels?|class(es)?"
ORDERED, INDICES, AT_ONCE = 1000, 10**6, 50  # samples whose order is looked at; those of which some are drawn


def first_samples(loader: Iterable[Any] | None, most: int = LOADED) -> Arrays | None:
    """Of a loader; None where there is none, or its batches are of another kind."""
    found, until = list[tuple[Tensor, Tensor]](), time.monotonic() + LOAD_SEC
    for batch in () if loader is None else loader:
        if not (pair := pair_of(batch)):
            return None
        found.append((pair[0], pair[1]))
        size = sum(x.nbytes for x, _ in found)
        if sum(len(y) for _, y in found) >= most or size >= LOADED_BYTES or time.monotonic() > until:
            break
    return Arrays(*map(torch.cat, zip(*found, strict=True))) if found else None


def pair_of(batch: Any) -> Any:
    """Inputs and targets of a batch of two; of a dict, by the name of the targets. None where that is not clear."""
    if isinstance(batch, dict):
        batch = sorted(batch.items(), key=lambda item: bool(re.fullmatch(TARGETS, item[0])))
        batch = [value for _, value in batch] if [bool(re.fullmatch(TARGETS, n)) for n, _ in batch] == [0, 1] else ()
    is_pair = isinstance(batch, (list, tuple)) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
    return batch if is_pair else None


def at_random(loader: Any, most: int = LOADED, at_once: int = AT_ONCE) -> DataLoader | None:
    """So many of the samples that a loader's sampler takes, each once; None where they have no indices."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not loader.batch_sampler:
        return None
    index = sorted(set(islice(map(int, chain.from_iterable(loader.batch_sampler)), INDICES)))
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:most]
    parts: Any = [[index[i] for i in part.tolist()] for part in order.split(at_once)]
    how: Any = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
    return DataLoader(loader.dataset, batch_sampler=parts, collate_fn=loader.collate_fn, **how)


def samples_of(loader: Any) -> Arrays | None:
    drawn = at_random(loader)
    return first_samples(loader if drawn is None else drawn)


def order_of(loader: Any) -> Tensor | None:
    """The targets of the first samples of an epoch; None where `samples_of` are in its order, too."""
    ordered = None if at_random(loader) is None else first_samples(loader, ORDERED)
    return None if ordered is None else ordered.targets


def split_off(train: Arrays) -> dict[str, Arrays]:
    """The last fifth of samples in random order in the place of val."""
    cut = len(train) * 4 // 5
    parts = ((train.x[i:j], train.targets[i:j]) for i, j in ((0, cut), (cut, len(train))))
    return dict(zip(("train", "val"), (Arrays(*part) for part in parts), strict=True))


def batch_size_of(loader: Any) -> int:
    """Of a loader; a guess where it does not say."""
    sizes = (getattr(one, "batch_size", None) for one in (loader, getattr(loader, "batch_sampler", None)))
    return next((size for size in sizes if size), 32)


def sample_sec(loader: Any) -> float:
    """Seconds to get one of a loader's samples, by its first batches."""
    number, t0 = 0, time.monotonic()
    for number, _ in enumerate(() if loader is None else loader, 1):
        if number >= 20 or time.monotonic() - t0 > 0.5:
            break
    return (time.monotonic() - t0) / max(number * batch_size_of(loader), 1)
