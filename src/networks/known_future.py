from torch import Tensor, nn


class KnownFuture(nn.Module):
    """What columns that are known in advance add to a forecast, linear in them at each step; nothing at first.

    Shapes: x [N, window + horizon, in_channels], the known columns last -> [N, horizon, num_outputs].
    """

    def __init__(self, num_known: int, window: int, num_outputs: int) -> None:
        super().__init__()
        self.num_known, self.window = num_known, window
        self.linear = nn.Linear(num_known, num_outputs, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, self.window :, -self.num_known :])


def refuse_past(name: str, num_past: int) -> None:
    """For networks that look at each target's own past alone."""
    if num_past:
        raise ValueError(f"{name} looks at the past of the targets alone, not at {num_past} more columns: take an RNN")
