import math

import torch

from src.data.augment import Affine, Flip, augment

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_each_sample_has_its_own_draw_whatever_the_batch():
    index, operations = torch.arange(6), [Flip(), Affine(10, 0.1, 0.1)]
    whole = augment(X, index, operations, seed=0, epoch=2)
    assert torch.equal(augment(X[2:4], index[2:4], operations, 0, 2), whole[2:4])
    assert not torch.equal(augment(X, index, operations, 0, 3), whole)


def test_flip_mirrors_some_samples_and_leaves_the_others():
    out = augment(X, torch.arange(6), [Flip(0.5)], seed=0, epoch=0)
    mirrored = [torch.equal(o, x.flip(-1)) for o, x in zip(out, X, strict=True)]
    same = [torch.equal(o, x) for o, x in zip(out, X, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 6


def test_affine_with_no_range_changes_nothing():
    assert torch.allclose(Affine()(X, torch.rand(6, 4)), X, atol=1e-6)


def test_affine_turns_and_shifts_as_far_as_it_says():
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 7] = 1  # right of the centre
    quarter = Affine(degrees=90)(dot, torch.tensor([[1.0, 0.5, 0.5, 0.5]]))
    assert {tuple(p) for p in quarter[0, 0].gt(0.9).nonzero().tolist()} <= {(1, 4), (7, 4)}
    assert math.isclose(quarter.sum(), 1, abs_tol=1e-4)
    shifted = Affine(translate=1 / 9)(dot, torch.tensor([[0.5, 0.5, 1.0, 0.5]]))
    assert shifted[0, 0].gt(0.9).nonzero().tolist() == [[4, 6]]
