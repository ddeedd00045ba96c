import pytest
import torch

from src.networks.dlinear import DLinear


def test_it_is_two_linear_layers_of_trend_and_rest():
    network = DLinear(kernel_size=3, window=8, horizon=4, in_channels=2, out_channels=2)
    for p in network.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(5, 8, 2)
    trend = torch.stack([x[:, [max(i - 1, 0), i, min(i + 1, 7)]].mean(1) for i in range(8)], 1)
    wanted = sum(
        torch.einsum("nwc,hw->nhc", part, layer.weight) + layer.bias[:, None]
        for part, layer in zip((trend, x - trend), network.blocks, strict=True)
    )
    assert torch.allclose(network(x), wanted, atol=1e-5)


def test_known_columns_add_to_each_step_of_the_future_alone():
    network = DLinear(kernel_size=3, window=8, horizon=4, in_channels=3, out_channels=1, num_known=2)
    torch.nn.init.normal_(network.known.linear.weight)
    x = torch.randn(5, 12, 3)
    other = x.clone()
    other[:, :8, 1:] += 1  # the past of what is known
    other[:, 8:, 0] += 1  # the future of what is not
    assert torch.equal(network(x), network(other))
    other[:, 9, 1] += 1
    changed = (network(x) - network(other)).abs().sum((0, 2)) > 0
    assert changed.tolist() == [False, True, False, False]


@pytest.mark.parametrize("num_quantiles", [1, 3])
def test_every_parameter_learns(num_quantiles):
    sizes = {"window": 9, "horizon": 5, "in_channels": 4, "out_channels": 2, "num_known": 2}
    network = DLinear(kernel_size=3, num_quantiles=num_quantiles, **sizes)
    y = network(torch.randn(3, 14, 4))
    assert y.shape == (3, 5, 2 * num_quantiles)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="even"):
        DLinear(kernel_size=4)
    with pytest.raises(ValueError, match="not at 2 more columns"):
        DLinear(in_channels=3, out_channels=1)
