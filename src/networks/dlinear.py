from torch import Tensor, nn
from torch.nn import functional as F

from src.networks.known_future import KnownFuture, refuse_past


class DLinear(nn.Module):
    """A moving average and what is left of it, each mapped to the forecast by one linear layer for all channels (Zeng
    et al., Are Transformers Effective for Time Series Forecasting?, 2023).

    Args:
        kernel_size: steps of the moving average, odd.
        window, horizon: steps that are seen, and forecast.
        in_channels, out_channels, num_known: columns of the data, how many first ones are forecast, and how many last
            ones are known in the future.
        num_quantiles: numbers for each step and channel.

    Shapes: x [N, window or window + horizon, in_channels] -> [N, horizon, out_channels * num_quantiles].
    """

    def __init__(
        self,
        kernel_size: int = 25,
        window: int = 96,
        horizon: int = 96,
        in_channels: int = 1,
        out_channels: int = 1,
        num_known: int = 0,
        num_quantiles: int = 1,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even: take {kernel_size + 1}")
        refuse_past("DLinear", in_channels - out_channels - num_known)
        self.kernel_size, self.window, self.horizon, self.out_channels = kernel_size, window, horizon, out_channels
        parts = [nn.Linear(window, horizon * num_quantiles) for _part in ("trend", "rest")]
        for linear in parts:
            nn.init.constant_(linear.weight, 1 / window)
        self.blocks = nn.ModuleList(parts)
        self.known = KnownFuture(num_known, window, out_channels * num_quantiles) if num_known else None

    def forward(self, x: Tensor) -> Tensor:
        past = x[:, : self.window, : self.out_channels].transpose(1, 2)  # [N, C, window]
        half = self.kernel_size // 2
        trend = F.avg_pool1d(F.pad(past, (half, half), mode="replicate"), self.kernel_size, 1)
        y = self.blocks[0](trend) + self.blocks[1](past - trend)  # [N, C, horizon * Q]
        y = y.unflatten(2, (self.horizon, -1)).transpose(1, 2).flatten(2)  # [N, horizon, C * Q]
        return y + self.known(x) if self.known else y
