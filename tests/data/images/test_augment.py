import math

import pytest
import torch
from torchvision.transforms import functional as reference

from src.data.images.augment import Affine, Color, Crop, Erasing, Flip, augment, blend
from src.data.order import uniform
from src.run.errors import ConfigError

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
COLORED = torch.randint(256, (64, 3, 16, 12), generator=torch.Generator().manual_seed(0)) / 255
ALL = {
    "flip": Flip(),
    "alternate": Flip(alternate=True),
    "crop": Crop(2),
    "reflect": Crop(2, "reflect"),
    "affine": Affine(10, 0.1, 0.1),
    "color": Color(0.4, 0.4, 0.4),
    "erasing": Erasing(),
}


@pytest.mark.parametrize("operation", ALL.values(), ids=ALL)
def test_each_sample_has_its_own_draw_whatever_the_batch(operation):
    index, operations = torch.arange(64), [Flip(), operation]
    whole = augment(COLORED, index, operations, seed=0, epoch=2)
    assert whole.shape == COLORED.shape
    assert whole.min() >= 0
    assert whole.max() <= 1 + 1e-5
    some = torch.tensor([40, 3, 17])
    assert torch.allclose(augment(COLORED[some], some, operations, 0, 2), whole[some], atol=1e-6)
    for seed, epoch in ((0, 3), (1, 2)):
        assert not torch.allclose(augment(COLORED, index, operations, seed, epoch), whole, atol=1e-3)
    changed = (augment(COLORED, index, [operation], 0, 2) - COLORED).abs().amax((1, 2, 3)) > 1e-3
    assert changed.sum() > 16
    assert augment(X, torch.arange(6), operations, 0, 0).shape == X.shape  # grey


def test_nothing_waits_for_the_device():
    """On the meta device there are no values: whatever asks for one fails."""
    x, index = torch.empty(8, 3, 16, 16, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    x = augment(x, index, list(ALL.values()), 0, 0)
    assert x.shape == (8, 3, 16, 16)


def test_the_images_that_come_in_are_left_as_they_are():
    before = COLORED.clone()
    augment(COLORED, torch.arange(64), list(ALL.values()), 0, 0)
    assert torch.equal(COLORED, before)


def test_two_epochs_of_alternating_flips_show_both_sides():
    first, second = (augment(X, torch.arange(6), [Flip(alternate=True)], 0, epoch) for epoch in (4, 5))
    assert torch.equal(first.flip(-1), second)
    mirrored = sum(torch.equal(a, x.flip(-1)) for a, x in zip(first, X, strict=True))
    assert 0 < mirrored < 6


@pytest.mark.parametrize(("mode", "padding_mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_crops_are_torchvisions(mode, padding_mode):
    crop, index = Crop(3, mode), torch.arange(64)
    corners = (uniform(0, 1, index, 0, 2) * 7).long().tolist()
    assert len({tuple(p) for p in corners}) > 25
    for x, out, (top, left) in zip(COLORED, augment(COLORED, index, [crop], 0, 1), corners, strict=True):
        padded = reference.pad(x, [3] * 4, padding_mode=padding_mode)
        assert torch.equal(out, reference.crop(padded, top, left, 16, 12))


@pytest.mark.parametrize("padding", [-1, 8])
def test_padding_is_smaller_than_the_image(padding):
    with pytest.raises(ConfigError, match=f"Crop.padding: {padding} for images of 8 -> take 0 to 7"):
        augment(X, torch.arange(6), [Crop(padding)], 0, 0)


def test_colors_are_torchvisions():
    u = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    out = Color(0.5, 0.4, 0.9)(COLORED, u)
    for x, result, (b, c, s) in zip(COLORED, out, (u * 2 - 1).tolist(), strict=True):
        x = reference.adjust_contrast(reference.adjust_brightness(x, 1 + 0.5 * b), 1 + 0.4 * c)
        assert torch.allclose(result, reference.adjust_saturation(x, 1 + 0.9 * s), atol=1e-5)


def test_erased_rectangles_have_the_shares_and_the_mean_that_they_should():
    x = torch.rand(2000, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = augment(x, torch.arange(2000), [Erasing(0.5, area=(0.1, 0.2))], 0, 0)
    erased = (out != x).any(1)  # [N, H, W]
    hit = erased.any((1, 2))
    assert hit.float().mean() == pytest.approx(0.5, abs=0.03)
    areas = erased[hit].float().mean((1, 2))
    assert areas.min() > 0.08
    assert areas.max() < 0.22
    assert areas.mean() == pytest.approx(0.15, abs=0.01)
    for i in hit.nonzero().flatten()[:20].tolist():
        rows, columns = erased[i].any(1).nonzero().flatten(), erased[i].any(0).nonzero().flatten()
        top, left, height, width = rows[0].item(), columns[0].item(), len(rows), len(columns)
        assert erased[i].sum() == height * width  # a rectangle
        assert torch.equal(out[i], reference.erase(x[i], top, left, height, width, x[i].mean((1, 2), keepdim=True)))


def test_a_blend_of_one_is_the_image():
    assert torch.equal(blend(COLORED, 0.3, torch.ones(64)), COLORED)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flip(p=1.5),
        lambda: Affine(scale=1.0),
        lambda: Erasing(p=-1),
        lambda: Erasing(ratio=(0, 3)),
        lambda: Erasing(area=(0.1, 2)),
    ],
)
def test_values_out_of_range_are_refused_at_once(make):
    with pytest.raises(ConfigError, match=r"\w+\.\w+: .* is not from 0.* to "):
        make()
