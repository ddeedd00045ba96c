import pytest
import torch
from torch import nn

from src.networks.image_rnn import ImageRNN


@pytest.mark.parametrize(("kind", "reference"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_an_image_is_read_by_rows(kind, reference):
    network = ImageRNN(kind, dim=8, depth=2, num_classes=3, in_channels=2, image_size=(5, 4)).eval()
    rnn = reference(8, 8, 2, batch_first=True)
    rnn.load_state_dict(network.blocks[0].state_dict())
    x = torch.randn(6, 2, 5, 4)
    rows = torch.stack([torch.cat([x[:, 0, r], x[:, 1, r]], 1) for r in range(5)], 1)  # [6, 5, 8]
    assert torch.allclose(network(x), network.head(rnn(rows)[0][:, -1]), atol=1e-6)


def test_every_parameter_learns():
    network = ImageRNN(dim=8, image_size=(4, 4))
    network(torch.randn(3, 1, 4, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
