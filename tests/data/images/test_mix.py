import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from src.data.images.mix import CutMix, MixUp, quantiles
from src.run.errors import ConfigError

X = torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCH = {"x": X, "index": torch.arange(200) + 1000, "targets": torch.arange(200) % 4}
HOT = F.one_hot(BATCH["targets"], 4).float()


def test_mixup_is_the_mean_by_the_shares_of_the_labels():
    out = MixUp(alpha=0.4)(BATCH, 4, seed=0, epoch=3)
    share = (out["soft_targets"] * HOT).sum(1)  # neighbours have different classes
    assert torch.allclose(out["soft_targets"], share[:, None] * HOT + (1 - share)[:, None] * HOT.roll(1, 0), atol=1e-6)
    by_hand = torch.stack([s * x + (1 - s) * y for s, x, y in zip(share, X, X.roll(1, 0), strict=True)])
    assert torch.allclose(out["x"], by_hand, atol=1e-5)
    assert torch.equal(out["targets"], BATCH["targets"])


def test_cutmix_takes_a_rectangle_of_the_partner_and_its_share_of_the_label():
    out = CutMix()(BATCH, 4, seed=0, epoch=3)
    share = (out["soft_targets"] * HOT).sum(1)
    foreign = (out["x"] == X.roll(1, 0)).all(1)  # [N, H, W]
    assert torch.equal(foreign | (out["x"] == X).all(1), torch.ones_like(foreign))
    assert torch.allclose(foreign.float().mean((1, 2)), 1 - share, atol=1e-6)
    for image in foreign[foreign.any((1, 2))]:
        assert image.sum() == image.any(0).sum() * image.any(1).sum()  # a rectangle
    assert share.std() > 0.2


@pytest.mark.parametrize("mix", [MixUp(), CutMix()])
def test_shares_belong_to_the_samples(mix):
    whole = mix(BATCH, 4, 0, 3)["soft_targets"]
    part = {name: value[50:60] for name, value in BATCH.items()}
    assert torch.equal(mix(part, 4, 0, 3)["soft_targets"][1:], whole[51:60])  # the first has another partner
    assert not torch.equal(mix(BATCH, 4, 0, 4)["soft_targets"], whole)


def test_some_samples_are_left_alone():
    out = MixUp(p=0.3)(BATCH, 4, 0, 0)
    alone = (out["soft_targets"] == HOT).all(1)
    assert alone.float().mean() == pytest.approx(0.7, abs=0.08)
    assert torch.equal(out["x"][alone], X[alone])


def test_several_labels_are_mixed_label_by_label():
    targets = torch.randint(2, (200, 5), generator=torch.Generator().manual_seed(0))
    soft = MixUp()({**BATCH, "targets": targets}, 5, 0, 0)["soft_targets"]
    same = targets == targets.roll(1, 0)
    assert torch.equal(soft[same], targets[same].float())
    assert ((soft[~same] > 0) & (soft[~same] < 1)).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_have_a_beta_distribution(alpha):
    values = quantiles(alpha, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"data.mix.alpha: 0 is not above 0"):
        MixUp(alpha=0)
    assert stats.kstest(values.numpy(), stats.beta(alpha, alpha).cdf).statistic < 0.02  # float32 rounds many to 1
