import math
import random
import statistics

import pytest

from src.tuning.judge import best_rate, bounds, is_faster, is_settled, level, most_loss, upper_bound

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


@pytest.fixture
def base() -> list[list[float]]:
    """Seeds differ by far more than what may be lost."""
    return [[2.0, *[x] * 3] for x in (1.00, 1.05, 0.95, 1.02)]


def times(base: list[list[float]], *by: float) -> list[list[float]]:
    """As correlated as trainings of the same seed are."""
    return [[losses[0], *[x * b for x in losses[1:]]] for losses, b in zip(base, by, strict=True)]


@pytest.mark.parametrize(
    ("by", "lost", "as_good"),
    [
        ((1.001, 1.001, 1.0, 1.002), False, True),
        ((1.02, 1.021, 1.019, 1.02), True, False),
        ((0.9, 0.91, 0.89, 0.9), False, True),  # ending lower is no loss
        ((1.03, 0.97, 1.02, 0.98), False, False),  # nothing is told by so few
    ],
)
def test_a_loss_of_two_percent_is_none_to_accept(base, by, lost, as_good):
    _, low, high = bounds(base, times(base, *by))
    assert (low > most_loss(base), high <= most_loss(base)) == (lost, as_good)


def test_losses_that_really_are_worse_pass_in_under_5_percent():
    """By pairs whose mean is just what may not be, at four seeds and, where these do not tell, at eight."""
    draw, passed = random.Random(0), 0
    for _ in range(1000):
        base = [[2.0, *[draw.gauss(1, 0.05)] * 3] for _ in range(8)]
        other = [[2.0, *[losses[1] + 0.01 + draw.gauss(0, 0.01)] * 3] for losses in base]
        for n in (4, 8):
            if bounds(base[:n], other[:n])[2] <= 0.01:
                passed += 1
                break
    assert passed < 60


def test_what_may_be_lost_goes_by_the_level_and_by_what_is_learned(base):
    assert most_loss(base) == pytest.approx(0.01, rel=0.02)
    assert most_loss([[2.0, 0.0, 0.0, 0.0]]) == pytest.approx(0.002)  # else nothing could pass
    assert most_loss([[2.0, 1.99, 1.99, 1.99]]) == pytest.approx(0.001)  # not twice as much as it learned
    assert most_loss([[2.0, 2.1, 2.1, 2.1]]) == 0
    assert bounds(base, [*times(base, 1, 1, 1, 1)[1:], []]) == (math.inf,) * 3
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
