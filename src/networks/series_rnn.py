from typing import Literal

from torch import Tensor, nn

from src.networks.known_future import KnownFuture


class SeriesRNN(nn.Module):
    """Reads the window step by step, all columns at once, and forecasts all steps from the last output.

    Args:
        kind: the cell.
        dim: units of each layer.
        depth: number of layers.
        dropout: share of the outputs of each layer zeroed in training.
        window, horizon: steps that are seen, and forecast.
        in_channels, out_channels, num_known: columns of the data, how many first ones are forecast, and how many last
            ones are known in the future.
        num_quantiles: numbers for each step and channel.

    Shapes: x [N, window or window + horizon, in_channels] -> [N, horizon, out_channels * num_quantiles].
    """

    def __init__(
        self,
        kind: Literal["lstm", "gru"] = "lstm",
        dim: int = 128,
        depth: int = 1,
        dropout: float = 0.0,
        window: int = 96,
        horizon: int = 96,
        in_channels: int = 1,
        out_channels: int = 1,
        num_known: int = 0,
        num_quantiles: int = 1,
    ) -> None:
        super().__init__()
        self.window, self.horizon = window, horizon
        cell = nn.LSTM if kind == "lstm" else nn.GRU
        between = dropout if depth > 1 else 0.0
        self.blocks = nn.ModuleList([cell(in_channels, dim, depth, batch_first=True, dropout=between)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, horizon * out_channels * num_quantiles)
        self.known = KnownFuture(num_known, window, out_channels * num_quantiles) if num_known else None

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.blocks[0](x[:, : self.window])  # [N, window, dim]
        y = self.head(self.dropout(y[:, -1])).unflatten(1, (self.horizon, -1))
        return y + self.known(x) if self.known else y
