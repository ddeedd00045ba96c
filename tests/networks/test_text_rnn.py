import pytest
import torch

from src.networks.text_rnn import TextRNN


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
    network = TextRNN(dim=8)
    network(torch.ones(2, 5).long()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
