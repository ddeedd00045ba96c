"""Whether a difference that was measured is more than noise."""

import math
import statistics
from collections.abc import Sequence

PAIRS, LEAST_GAIN = 8, 0.97  # of trials in turn; a ratio of times above it is not worth a change
SURE = 2.35  # of Student's t with 3 degrees of freedom, one-sided 5 %: that of four pairs


def upper_bound(ratios: Sequence[float]) -> float:
    """Of their median, with 95 % confidence whatever they are spread like (the sign test); infinite below five."""
    n, below, k = len(ratios), 0.0, -1
    while (below := below + math.comb(n, k + 1) / 2**n) <= 0.05:
        k += 1
    return sorted(ratios)[n - 1 - k] if k >= 0 else math.inf


def is_faster(ratios: Sequence[float]) -> bool:
    return statistics.median(ratios) <= LEAST_GAIN and upper_bound(ratios) < 1


def is_settled(ratios: Sequence[float]) -> bool:
    """Whether what is left of `PAIRS` cannot make it faster any more."""
    return len(ratios) > 2 and not is_faster([*ratios, *[0.0] * (PAIRS - len(ratios))])


def level(losses: Sequence[float]) -> float:
    """Where a short training ends: the mean of its last third; infinite where it ended early or not in numbers."""
    end = statistics.fmean(losses[-max(len(losses) // 3, 1) :]) if losses else math.inf
    return end if math.isfinite(end) else math.inf


def difference(base: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Of the levels of two settings, pair by pair of one seed: the mean, and what seeds make by themselves: twice the
    standard deviation between those of the base."""
    if not all(map(math.isfinite, other)):
        return math.inf, 2 * statistics.stdev(base)
    return statistics.fmean(b - a for a, b in zip(base, other, strict=True)), 2 * statistics.stdev(base)


def is_lower(base: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the other's levels are lower, pair by pair of one seed, beyond noise."""
    if not all(map(math.isfinite, other)):
        return False
    by = [a - b for a, b in zip(base, other, strict=True)]
    return statistics.fmean(by) > SURE * statistics.stdev(by) / math.sqrt(len(by))


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, list[float]] | None:
    """The rate between that of the steepest fall of the smoothed loss and that of its minimum, and the smoothed loss.

    Smith, Cyclical Learning Rates for Training Neural Networks, 2017: the loss falls, is lowest, and breaks out; the
    rate at the minimum is too high already. None where the loss never falls.
    """
    smooth, mean = [], losses[0] if losses else 0.0
    for loss in losses:
        mean = 0.8 * mean + 0.2 * loss
        smooth.append(mean)
        if not math.isfinite(loss) or mean > 2 * smooth[0] - min(smooth) + 0.1 * abs(smooth[0]):
            break  # it is as much above the start as it was below
    finite = [value for value in smooth if math.isfinite(value)]
    lowest = finite.index(min(finite)) if finite else 0
    if lowest < 5:
        return None
    steepest = min(range(2, lowest + 1), key=lambda i: finite[i] - finite[i - 2])
    return math.sqrt(rates[steepest] * rates[lowest]), finite
