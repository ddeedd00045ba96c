"""Which samples a step takes, and every random number of an augmentation: functions of (seed, epoch, position).

Nothing here has a state, so a run that goes on at step k takes the same samples as one that was never stopped.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from src.run.errors import ConfigError, DataError

LARGE = 1_000_000  # above it a shuffled list of all indices costs too much memory and time at each epoch's start
BLOCK = 4096  # indices that are made at once then: a few of them take almost as long
MASK = 0xFFFFFFFF

T = TypeVar("T", int, Tensor)
Order = Callable[[int, int], Tensor]  # start, stop -> [stop - start] indices


def fmix32(x: T) -> T:
    """MurmurHash3's 32-bit finalizer on integers or int64 tensors in 32 bits (Appleby, public domain)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def key(*parts: int) -> int:
    """One 32-bit key from several integers."""
    h = 0
    for part in parts:
        h = fmix32((h * 31 + 0x9E3779B9 + (part & MASK)) & MASK)
    return h


def uniform(seed: int, epoch: int, index: Tensor, operation: int, draws: int) -> Tensor:
    """Random numbers [N, draws] in [0, 1) that belong to the samples `index` [N], wherever and whenever they are drawn;
    `operation` tells apart the uses that one sample makes of randomness."""
    # key(seed, epoch, operation, d) for all d, made on the device: to copy them there would stop it.
    d = torch.arange(draws, device=index.device)
    keys = fmix32((key(seed, epoch, operation) * 31 + 0x9E3779B9 + d) & MASK)
    bits = fmix32(fmix32(index[:, None] & MASK) ^ keys)
    return (bits >> 8).to(torch.float32) * 2.0**-24


def feistel(position: Tensor, n: int, seed: int, epoch: int, rounds: int = 6) -> Tensor:
    """A keyed permutation of 0..n-1, evaluated only at `position` [N]: a balanced Feistel network, walked until
    it falls inside the range (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002)."""
    half = max(1, math.ceil(math.log2(n) / 2))
    mask, keys = (1 << half) - 1, [key(seed, epoch, r) for r in range(rounds)]
    out, todo = position.clone(), torch.ones_like(position, dtype=torch.bool)
    while todo.any():
        left, right = out[todo] >> half, out[todo] & mask
        for k in keys:
            left, right = right, left ^ (fmix32(right ^ k) & mask)
        out[todo] = (left << half) | right
        todo = out >= n
    return out


def shuffled(n: int, seed: int, epoch: int) -> Order:
    """The epoch's order of n samples."""
    if n > LARGE:
        return in_blocks(lambda start, stop: feistel(torch.arange(start, min(stop, n)), n, seed, epoch))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(key(seed, epoch)))
    return lambda start, stop: order[start:stop]


def in_blocks(order: Order) -> Order:
    block = lru_cache(1)(lambda i: order(i * BLOCK, (i + 1) * BLOCK))

    def taken(start: int, stop: int) -> Tensor:
        first, last = start // BLOCK, (stop - 1) // BLOCK
        return torch.cat([block(i) for i in range(first, last + 1)])[start - first * BLOCK : stop - first * BLOCK]

    return taken


def first_epoch(ordered: Callable[[int, int, int], Order], n: int, seed: int, epoch: int) -> Order:
    """The same in every epoch, for `trainer.overfit_batches`."""
    return ordered(n, seed, 0)


def rest(ordered: Callable[[int, int, int], Order], left_out: Tensor, n: int, seed: int, epoch: int) -> Order:
    """The order that `ordered` gives all samples, of the `n` that remain without those that are `left_out`."""
    order = ordered(n + len(left_out), seed, epoch)(0, n + len(left_out))
    order = order[~torch.isin(order, left_out)]
    return lambda start, stop: order[start:stop]


def indices_in(file: str | None, num_samples: dict[str, int]) -> Tensor:
    """Samples of train, in order, that a text file names by their indices, one a line; after a # is a comment."""
    try:
        found = np.unique(np.loadtxt(Path(file).read_text().splitlines(), np.int64)) if file else np.arange(0)
    except (OSError, ValueError) as e:
        raise DataError(f"data.without: {file}: {e} -> name a text file with one index of train a line") from e
    if len(found) and not 0 <= found[0] <= found[-1] < num_samples["train"]:
        raise DataError(f"data.without: {file}: give indices from 0 to {num_samples['train'] - 1}, the last of train")
    return torch.from_numpy(found)


def divided(batch_size: int, micro_batch_size: int | None, world_size: int) -> tuple[int, int]:
    """The size of micro-batches, and how many of them each device takes for one step."""
    if batch_size % world_size:
        low = batch_size // world_size * world_size
        sizes = [n for n in (low, low + world_size) if n]
        raise ConfigError(f"data.batch_size: {batch_size} over {world_size} devices -> take one of {sizes}")
    share = batch_size // world_size
    micro = micro_batch_size or share
    if micro < 1 or share % micro:
        sizes = [n for n in range(1, share + 1) if share % n == 0]
        raise ConfigError(f"data.micro_batch_size: {micro} does not divide {share} -> take one of {sizes}")
    return micro, share // micro


@dataclass
class TrainOrder:
    """Index tensors of one device's micro-batches, shuffled; what does not fill a batch waits for another epoch.

    Iterating begins at `position()`, an epoch and a micro-batch, so a run that is resumed goes on. `ordered` gives an
    epoch's order, as `shuffled` does.
    """

    num_samples: int
    batch_size: int
    micro_batch_size: int
    seed: int
    position: Callable[[], tuple[int, int]]
    rank: int = 0
    world_size: int = 1
    ordered: Callable[[int, int, int], Order] = shuffled

    def __len__(self) -> int:
        steps = self.num_samples // self.batch_size
        return steps * (self.batch_size // (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[Tensor]:
        return self.begin(*self.position())

    def begin(self, epoch: int, first: int) -> Iterator[Tensor]:
        """The micro-batches of an epoch from the `first` on."""
        order = self.ordered(self.num_samples, self.seed, epoch)
        for i in range(first, len(self)):
            start = (i * self.world_size + self.rank) * self.micro_batch_size
            yield order(start, start + self.micro_batch_size)


@dataclass
class EvalOrder:
    """Index tensors of one device's batches. All batches of all devices have one size; -1 marks padding."""

    num_samples: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    order: Order = torch.arange

    def __len__(self) -> int:
        return math.ceil(self.num_samples / (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(len(self)):
            start = (i * self.world_size + self.rank) * self.micro_batch_size
            stop = max(start, min(start + self.micro_batch_size, self.num_samples))
            yield F.pad(self.order(start, stop), (0, start + self.micro_batch_size - stop), value=-1)
