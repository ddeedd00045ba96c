"""Windows of a row of tokens, and the order in which training takes them."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.loader import Batch
from src.data.order import Order, key, shuffled

IGNORED = -100  # cross_entropy's own mark of targets that do not count


class Windows(Dataset):
    """Windows of a row of tokens; the last one is padded, its targets by -100.

    Args:
        tokens: [tokens + 1]; the first one is context only.
        seq_len: targets of a window.
        stride: tokens from one index to the next.
    """

    def __init__(self, tokens: Tensor, seq_len: int, stride: int) -> None:
        self.tokens, self.seq_len, self.stride = tokens, seq_len, stride

    def __len__(self) -> int:
        targets = len(self.tokens) - 1
        if self.stride == 1:  # training windows are moved by up to seq_len - 1 tokens
            return max(0, (targets - self.seq_len + 1) // self.seq_len)
        return -(-targets // self.seq_len)

    def __getitem__(self, index: Tensor) -> Batch:
        at = index.clamp(min=0)[:, None] * self.stride + torch.arange(self.seq_len + 1)
        last = len(self.tokens) - 1
        rows = torch.from_numpy(self.tokens.numpy()[at.clamp(max=last).numpy()].astype(np.int64))
        targets = rows[:, 1:].masked_fill((at[:, 1:] > last) | (index < 0)[:, None], IGNORED)
        return {"x": rows[:, :-1], "targets": targets, "index": index}


def moved(seq_len: int, n: int, seed: int, epoch: int) -> Order:
    """The epoch's order of n windows, as their first tokens; in each epoch they begin elsewhere."""
    order, offset = shuffled(n, seed, epoch), key(seed, epoch, 1) % seq_len
    return lambda start, stop: order(start, stop) * seq_len + offset
