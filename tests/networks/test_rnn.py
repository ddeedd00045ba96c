import pytest
import torch
from torch import nn

from src.networks.image_rnn import ImageRNN
from src.networks.text_rnn import TextRNN


@pytest.mark.parametrize(("kind", "reference"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_an_image_is_read_by_rows(kind, reference):
    network = ImageRNN(kind, dim=8, depth=2, num_classes=3, in_channels=2, image_size=(5, 4)).eval()
    rnn = reference(8, 8, 2, batch_first=True)
    rnn.load_state_dict(network.blocks[0].state_dict())
    x = torch.randn(6, 2, 5, 4)
    rows = torch.stack([torch.cat([x[:, 0, r], x[:, 1, r]], 1) for r in range(5)], 1)  # [6, 5, 8]
    assert torch.allclose(network(x), network.head(rnn(rows)[0][:, -1]), atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_text_looks_back_only(kind):
    network = TextRNN(kind, dim=8, depth=2, vocab_size=7).eval()
    x = torch.randint(7, (2, 9))
    other = x.clone()
    other[:, 4] = (other[:, 4] + 1) % 7
    before, after = network(x), network(other)
    assert before.shape == (2, 9, 7)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_every_parameter_learns():
    for network, x in (
        (ImageRNN(dim=8, image_size=(4, 4)), torch.randn(3, 1, 4, 4)),
        (TextRNN(dim=8), torch.ones(2, 5).long()),
    ):
        network(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
