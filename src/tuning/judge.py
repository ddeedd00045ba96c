"""Whether a difference that was measured is more than noise."""

import math
import statistics
from collections.abc import Sequence

LEAST_GAIN = 0.97  # a ratio of times above it is not worth a change
SURE = 2.35  # of Student's t with 3 degrees of freedom: 5 % of four pairs of equals are above


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


def shift(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> tuple[float, float]:
    """By how much short trainings with other settings end higher, pair by pair of one seed, in the mean; and what of
    that is noise: 5 % of equals are above, and 5 % below (t test)."""
    before, after = ([level(losses) for losses in side] for side in (base, other))
    if not all(map(math.isfinite, [*before, *after])):
        return math.inf, 0.0
    by = [b - a for a, b in zip(before, after, strict=True)]
    return statistics.fmean(by), SURE * statistics.stdev(by) / math.sqrt(len(by))


def tolerance(base: Sequence[Sequence[float]], noise: float) -> float:
    """How far settings may end from the base and count as equal: what is noise in the pairs, or a twentieth of what the
    loss falls by; at most what seeds make by themselves, which is twice their standard deviation."""
    levels = [level(losses) for losses in base]
    fall = statistics.fmean(losses[0] for losses in base if losses) - statistics.fmean(levels)
    return min(max(noise, abs(fall) / 20), 2 * statistics.stdev(levels))


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
