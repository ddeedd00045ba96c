import pytest
import torch

from src.networks.series_rnn import SeriesRNN


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_it_reads_the_window_and_what_is_known_of_the_future(kind):
    sizes = {"window": 6, "horizon": 3, "in_channels": 4, "out_channels": 2, "num_known": 1}
    network = SeriesRNN(kind, dim=8, depth=2, num_quantiles=3, **sizes).eval()
    torch.nn.init.normal_(network.known.linear.weight)
    x = torch.randn(5, 9, 4)
    y = network(x)
    assert y.shape == (5, 3, 6)
    other = x.clone()
    other[:, 6:, :3] += 1  # the future of what is not known
    assert torch.equal(y, network(other))
    for step in (0, 5, 7):  # in the window, at its end, in the future
        other = x.clone()
        other[:, step, 3] += 1
        assert not torch.equal(y, network(other))


def test_every_parameter_learns():
    network = SeriesRNN(dim=8, window=5, horizon=2, in_channels=3, out_channels=2, num_known=1)
    network(torch.randn(4, 7, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
