import pytest
import torch

from src.networks.patch_transformer import PatchTransformer

SIZES = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "stride": 2, "window": 12, "horizon": 5}


def test_channels_are_seen_one_by_one_with_the_same_weights():
    network = PatchTransformer(**SIZES, in_channels=3, out_channels=3).eval()
    x = torch.randn(4, 12, 3)
    y = network(x)
    assert y.shape == (4, 5, 3)
    assert torch.allclose(network(x[:, :, [2, 0, 1]]), y[:, :, [2, 0, 1]], atol=1e-6)
    other = x.clone()
    other[:, -1, 0] += 1  # the last step is in a patch, too
    changed = (network(other) - y).abs().amax((0, 1)) > 0
    assert changed.tolist() == [True, False, False]


def test_every_parameter_learns():
    network = PatchTransformer(**SIZES, in_channels=3, out_channels=1, num_known=2, num_quantiles=3)
    y = network(torch.randn(4, 17, 3))
    assert y.shape == (4, 5, 3)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"patch_size": 13}, "more than the window"), ({"in_channels": 2, "out_channels": 1}, "1 more columns")],
)
def test_what_does_not_fit_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        PatchTransformer(**{**SIZES, **sizes})
