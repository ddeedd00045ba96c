import math
import random
import statistics

import pytest

from src.tuning.judge import best_rate, is_faster, is_settled, level, shift, tolerance, upper_bound

PAIRS = 11


def verdicts(gain: float, noise: float, times: int = 2000) -> float:
    """The share of comparisons that end as faster, of blocks with heavy-tailed noise."""
    draw = random.Random(0)

    def block(sec: float) -> float:
        return sec * (1 + noise * draw.gauss(0, 1) ** 2 + (draw.random() < 0.05))

    pairs = [[block(gain) / block(1.0) for _ in range(PAIRS)] for _ in range(times)]
    return statistics.fmean(is_faster(ratios) for ratios in pairs)


def test_equals_are_seldom_told_apart_and_gains_are_found():
    assert verdicts(1.0, 0.03) < 0.05
    assert verdicts(1.0, 0.3) < 0.05
    assert verdicts(0.98, 0.001) < 0.1  # not worth a change
    assert verdicts(0.8, 0.03) > 0.9


@pytest.mark.parametrize(("n", "place"), [(5, 0), (7, 0), (8, 1), (11, 2), (16, 4)])
def test_the_bound_is_that_of_the_sign_test(n, place):
    assert upper_bound(range(n)) == n - 1 - place
    assert sum(math.comb(n, k) for k in range(place + 1)) / 2**n <= 0.05
    assert upper_bound(range(4)) == math.inf


def test_it_stops_early_only_where_nothing_can_change():
    assert not is_settled([], PAIRS)
    assert not is_settled([1.1, 1.2, 0.9], PAIRS)
    assert is_settled([1.1, 1.2, 0.9, 1.0], PAIRS)
    assert not is_settled([1.1, 0.9, 0.9], PAIRS)
    draw = random.Random(0)
    for _ in range(500):
        ratios = [draw.uniform(0.85, 1.05) for _ in range(PAIRS)]
        assert not (is_faster(ratios) and any(is_settled(ratios[:n], PAIRS) for n in range(PAIRS)))


def test_losses_are_compared_by_what_seeds_make():
    base = [[2.0, *[x] * 3] for x in (1.00, 1.02, 0.98, 1.01)]

    def moved(*by: float) -> list[list[float]]:
        return [[2.0, *[losses[1] + b] * 3] for losses, b in zip(base, by, strict=True)]

    def is_equal(other: list[list[float]]) -> bool:
        by, noise = shift(base, other)
        return abs(by) <= tolerance(base, noise)

    assert is_equal(moved(0.001, 0.001, 0.002, 0.001))
    assert is_equal(moved(0.02, -0.02, 0.01, -0.01))
    assert not is_equal(moved(0.1, 0.1, 0.1, 0.1))
    assert not is_equal(moved(-0.1, -0.1, -0.1, -0.1))
    small = [[1.03, *losses[1:]] for losses in base]  # whose loss falls by no more than seeds differ by
    by, noise = shift(small, [[1.03] * 4] * 4)
    assert by > tolerance(small, noise)
    assert shift(base, [*moved(0, 0, 0, 0)[1:], []])[0] == math.inf
    assert level([3, 2, 1]) == 1
    assert level([1.0, math.nan]) == level([]) == math.inf


def test_a_rate_is_found_between_the_steepest_fall_and_the_minimum():
    rates = [10 ** (-4 + 4 * i / 99) for i in range(100)]

    def loss(rate: float) -> float:
        fallen = 1 / (1 + (rate / 3e-3) ** -1.5)
        return 2.3 - 1.5 * fallen + (rate / 0.1) ** 3

    found, smooth = best_rate(rates, [loss(rate) for rate in rates])
    assert 1e-3 < found < 0.1
    assert len(smooth) < 100  # it ends where it breaks out
    assert best_rate(rates, [2.3 + i / 10 for i in range(100)])[0] == 0
    assert best_rate(rates, [])[0] == 0
    assert best_rate(rates, [math.nan] * 9)[0] == 0
    with_nan, _ = best_rate(rates, [loss(rate) if rate < 0.05 else math.nan for rate in rates])
    assert 1e-3 < with_nan < 0.05
