from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.loader import Batch
from src.data.order import Order, key, shuffled


class Windows(Dataset):
    """Windows of a split as views of its rows; `windows[index]` takes a whole batch at once.

    Args:
        rows: for each row, its `values` (standardized targets, past, known) float32 [T, in_channels], its `targets`
            [T, out_channels], NaN where unknown, the `series` that it is of, int32 [T], and its `time`, int64 [T].
        starts: first rows of the windows, int64.
        num_known: of the last columns, how many are known in the future.
        stride: of training, which sees one of so many windows in an epoch.
        season: None in training; else batches have the `seasonal` forecast, by so many steps, or 0 for the last value.
    """

    def __init__(
        self,
        rows: dict[str, Tensor],
        starts: Tensor,
        window: int,
        horizon: int,
        num_known: int = 0,
        stride: int = 1,
        season: int | None = None,
    ) -> None:
        self.rows, self.starts, self.values, self.season = rows, starts, rows["values"], season
        self.window, self.horizon, self.stride = window, horizon, stride
        self.num_unknown = self.values.shape[1] - num_known
        self.inputs = views(self.values, window + horizon if num_known else window)
        self.outputs = views(rows["targets"], horizon)
        ahead = torch.arange(horizon)
        self.back = window + ahead - season * (ahead // season + 1) if season else torch.full((horizon,), window - 1)

    def __len__(self) -> int:
        return len(self.starts) // self.stride

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Windows":
        """Of training: its batches have no seasonal forecast."""
        rows = {name: move(self.rows[name]) for name in ("values", "targets")}
        num_known = self.values.shape[1] - self.num_unknown
        return Windows(rows, move(self.starts), self.window, self.horizon, num_known, self.stride)

    def __getitem__(self, index: Tensor) -> Batch:
        if self.season is None:  # in training, where no index is padding
            return self.batch(self.starts.index_select(0, index), index)
        starts = self.starts.index_select(0, index.clamp(min=0))
        batch = self.batch(starts, index) | {"seasonal": self.seasonal(starts)}
        return batch | {"targets": batch["targets"].masked_fill((index < 0)[:, None, None], torch.nan)}

    def batch(self, starts: Tensor, index: Tensor) -> Batch:
        x, targets = self.inputs.index_select(0, starts), self.outputs.index_select(0, starts + self.window)
        if x.shape[1] > self.window:
            x[:, self.window :, : self.num_unknown] = 0
        return {"x": x, "targets": targets, "index": index}

    def seasonal(self, starts: Tensor) -> Tensor:
        """[N, horizon, out_channels]: the last value of the same place in a season; where the series begins later, the
        last value before the forecast."""
        rows, last = starts[:, None] + self.back, starts[:, None] + self.window - 1
        of_series = self.rows["series"][rows.clamp(min=0)] == self.rows["series"][last]
        return self.values[torch.where((rows >= 0) & of_series, rows, last), : self.outputs.shape[2]]


def views(rows: Tensor, size: int) -> Tensor:
    """[T, C] -> [T - size + 1, size, C] without a copy."""
    return rows.unfold(0, size, 1).transpose(1, 2) if len(rows) >= size else rows.new_zeros(0, size, rows.shape[1])


def moved(stride: int, n: int, seed: int, epoch: int) -> Order:
    """The epoch's order of n windows that lie `stride` apart; in each epoch they begin elsewhere."""
    order, offset = shuffled(n, seed, epoch), key(seed, epoch, 1) % stride
    return order if stride == 1 else lambda start, stop: order(start, stop) * stride + offset
