import torch
from torch import Tensor
from torchmetrics import Metric


class MaskedMean(Metric):
    """The mean over all samples of all devices, without padding. NaN stays NaN.

    torchmetrics' MeanMetric either waits for the device at each update, to look for NaN, or ignores the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        exact = torch.float32 if torch.backends.mps.is_available() else torch.float64  # Apple's GPUs have no float64
        self.add_state("total", torch.zeros((), dtype=exact), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=exact), dist_reduce_fx="sum")

    def update(self, values: Tensor, real: Tensor) -> None:
        """values [N], real [N]: whether each is a sample or padding."""
        self.total += torch.where(real, values.to(self.total.dtype), 0.0).sum()
        self.count += real.sum()

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


def f1_by_class(confusion: Tensor) -> Tensor:
    """confusion [C, C], rows are targets -> [C], NaN for a class that is neither a target nor predicted."""
    return 2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))
