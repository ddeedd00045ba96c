"""Scores of classes, gathered over all samples of all devices."""

import torch
from torch import Tensor
from torchmetrics import Metric

BINS, LARGEST = 2048, 20.0  # of the log-odds, from -LARGEST to LARGEST


class AUROC(Metric):
    """The area under the ROC curve of each class against the rest, as the share of pairs of a positive and a negative
    sample that are in the right order (Hanley and McNeil, 1982). NaN for a class with no such pair.

    Scores are counted in bins, and those of one bin are equal: memory does not grow with the number of samples.
    torchmetrics' own keeps all samples, or compares each with hundreds of thresholds; and it scores classes that have
    no samples.
    """

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, num_classes, BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, odds: Tensor, positive: Tensor, real: Tensor) -> None:
        """odds [N, num_classes], the logarithm of p / (1 - p); positive [N, num_classes] and real [N], both bool."""
        num_classes = odds.shape[1]
        odds = odds.float().nan_to_num().clamp(-LARGEST, LARGEST)
        bins = ((odds + LARGEST) * ((BINS - 1) / (2 * LARGEST))).round().long()
        rows = positive.long() * num_classes + torch.arange(num_classes, device=odds.device)
        ones = real.double()[:, None].expand_as(odds)
        self.counts.view(-1).index_add_(0, (rows * BINS + bins).flatten(), ones.flatten())

    def compute(self) -> Tensor:
        negative, positive = self.counts  # [num_classes, BINS]
        below = negative.cumsum(1) - negative / 2
        return ((positive * below).sum(1) / (positive.sum(1) * negative.sum(1))).float()


def f1(confusion: Tensor) -> Tensor:
    """F1 of each class, from counts [C, C], rows are targets, or [C, 2, 2], a table for each label. NaN for a class
    that is neither there nor predicted."""
    if confusion.ndim == 2:
        right, both = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    else:
        right, both = confusion[:, 1, 1], confusion[:, 1].sum(1) + confusion[:, :, 1].sum(1)
    return 2 * right / both
