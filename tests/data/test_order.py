import pytest
import torch

from src.data import order
from src.data.order import EvalOrder, TrainOrder, feistel, shuffled, uniform


def take(epoch=0, first=0, seed=0, rank=0, world_size=1, micro=10, n=105):
    position = lambda: (epoch, first)  # noqa: E731
    return torch.stack(list(TrainOrder(n, 20, micro, seed, position, rank, world_size)))


def test_an_epoch_takes_whole_batches_and_no_sample_twice():
    index = take()
    assert index.shape == (10, 10)  # 5 steps of 2 micro-batches; 5 samples wait
    assert len(index.unique()) == 100


def test_order_depends_on_seed_and_epoch_alone():
    assert torch.equal(take(), take())
    assert not torch.equal(take(), take(epoch=1))
    assert not torch.equal(take(), take(seed=1))


def test_an_epoch_can_begin_anywhere():
    assert torch.equal(take(first=7), take()[7:])


def test_devices_share_each_batch():
    steps = take(micro=20)  # [5, 20]
    shares = torch.cat([take(rank=r, world_size=2) for r in range(2)], dim=1)  # [5, 2 * 10]
    assert torch.equal(steps.sort(1).values, shares.sort(1).values)


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 4096, 10_007])
def test_feistel_is_a_permutation(n):
    index = feistel(torch.arange(n), n, seed=3, epoch=1)
    assert torch.equal(index.sort().values, torch.arange(n))


def test_large_sets_are_shuffled_without_a_list(monkeypatch):
    monkeypatch.setattr(order, "LARGE", 100)
    whole = shuffled(5000, 0, 0)(0, 5000)
    assert torch.equal(whole.sort().values, torch.arange(5000))
    assert torch.equal(whole, feistel(torch.arange(5000), 5000, 0, 0))  # made in blocks
    assert torch.equal(shuffled(5000, 0, 0)(1000, 1064), whole[1000:1064])
    neighbours = (whole[1:] - whole[:-1]).abs().float().mean()
    assert neighbours == pytest.approx(5000 / 3, rel=0.05)  # what a random order has


def test_evaluation_takes_each_sample_once_and_marks_padding():
    batches = [torch.stack(list(EvalOrder(23, 5, rank, 2))) for rank in range(2)]
    assert [b.shape for b in batches] == [(3, 5), (3, 5)]
    index = torch.cat(batches).flatten()
    assert torch.equal(index[index >= 0].sort().values, torch.arange(23))
    assert (index == -1).sum() == 7


def test_random_numbers_belong_to_the_sample():
    index = torch.arange(1000)
    u = uniform(0, 0, index, 0, 3)
    assert torch.equal(uniform(0, 0, index[[5, 3]], 0, 3), u[[5, 3]])
    for other in (uniform(1, 0, index, 0, 3), uniform(0, 1, index, 0, 3), uniform(0, 0, index, 1, 3)):
        assert torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1].abs() < 0.1


def test_random_numbers_are_uniform_and_independent():
    u = uniform(0, 0, torch.arange(100_000), 0, 2)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, 100, 0, 1)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert 60 < chi2 < 150  # 99 degrees of freedom: 99.9 % lie in 61 to 149
    assert torch.corrcoef(u.T)[0, 1].abs() < 0.01
    assert torch.corrcoef(torch.stack([u[1:, 0], u[:-1, 0]]))[0, 1].abs() < 0.01
