"""Whether a difference that was measured is more than noise."""

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit  # of Student's t: the value below which it is with this probability

LEAST_GAIN = 0.97  # a ratio of times above it is not worth a change


def upper_bound(ratios: Sequence[float]) -> float:
    """Of their median, with 95 % confidence whatever they are spread like (the sign test); infinite of fewer than 5."""
    n, k, tail = len(ratios), 0, 0.0
    while (tail := tail + math.comb(n, k) / 2**n) <= 0.05:
        k += 1
    return sorted(ratios)[n - k] if k else math.inf


def is_faster(ratios: Sequence[float]) -> bool:
    return statistics.median(ratios) <= LEAST_GAIN and upper_bound(ratios) < 1


def is_settled(ratios: Sequence[float], pairs: int) -> bool:
    """Whether those that are left of so many pairs cannot make it faster any more."""
    return len(ratios) == pairs or not is_faster([*ratios, *[0.0] * (pairs - len(ratios))])


def level(losses: Sequence[float]) -> float:
    """Where a short training ends: the mean of its last third; infinite where that is no number."""
    end = statistics.fmean(losses[-max(len(losses) // 3, 1) :]) if losses else math.inf
    return end if math.isfinite(end) else math.inf


def bounds(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """By how much short trainings with other settings end higher, pair by pair of one seed: the mean, and two bounds,
    beyond each of which the true mean is in 2.5 % of all cases (t test); all infinite where an end is no number."""
    before, after = ([level(losses) for losses in side] for side in (base, other))
    if not all(map(math.isfinite, [*before, *after])):
        return math.inf, math.inf, math.inf
    by = [b - a for a, b in zip(before, after, strict=True)]
    mean, wide = statistics.fmean(by), stdtrit(len(by) - 1, 0.975) * statistics.stdev(by) / math.sqrt(len(by))
    return mean, mean - wide, mean + wide


def most_loss(base: Sequence[Sequence[float]]) -> float:
    """How much higher trainings may end and count as as good: by 1 % of where those of the base end. That is nothing
    where losses end near 0, so at least a thousandth of what they fall by; and at most a tenth of it, because where
    they hardly fall, 1 % is more than all that was learned. None where they rise."""
    levels = [level(losses) for losses in base]
    fall = statistics.fmean(losses[0] for losses in base if losses) - statistics.fmean(levels)
    return max(min(max(abs(statistics.fmean(levels)) / 100, fall / 1000), fall / 10), 0.0)


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, list[float]]:
    """The rate between that of the steepest fall of the smoothed loss and that of its minimum, where it is too high
    already (Smith, Cyclical Learning Rates for Training Neural Networks, 2017); 0 where the loss never falls. And the
    smoothed loss, until it breaks out: as far above its start as it was below."""
    smooth: list[float] = []
    mean = losses[0] if losses else 0.0
    for loss in losses:
        mean = 0.8 * mean + 0.2 * loss
        if not math.isfinite(mean) or (smooth and mean > 2 * smooth[0] - min(smooth) + 0.1 * abs(smooth[0])):
            break
        smooth.append(mean)
    lowest = smooth.index(min(smooth)) if smooth else 0
    if lowest < 5:
        return 0.0, smooth
    steepest = min(range(2, lowest + 1), key=lambda i: smooth[i] - smooth[i - 2])
    return math.sqrt(rates[steepest] * rates[lowest]), smooth
