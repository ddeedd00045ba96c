import pytest
import torch

from src.networks.gpt import GPT, rotation
from src.networks.transformer import rotate


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


def test_gpt_has_as_many_parameters_as_nanogpt():
    """nanoGPT's recipe for a CPU, without biases and position embeddings, counted by hand: the embedding, which is the
    last layer too; in each block 4 dim^2 for attention, 8 dim^2 for the perceptron and 2 norms; a norm at the end."""
    dim, depth, vocab_size = 128, 4, 65
    by_hand = vocab_size * dim + depth * (12 * dim**2 + 2 * dim) + dim
    assert count(GPT(dim, depth, 4, vocab_size=vocab_size, seq_len=64)) == by_hand == 795_904


def test_seven_billion_parameters_are_counted_without_memory():
    with torch.device("meta"):
        network = GPT(dim=4096, depth=32, num_heads=32, tie_embeddings=False, vocab_size=50_304, seq_len=4096)
    assert 6.5e9 < count(network) < 7.5e9


def test_a_later_token_changes_no_earlier_logit():
    network = GPT(32, 2, 4, vocab_size=11, seq_len=12).eval()
    x = torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 7] = (other[:, 7] + 1) % 11
    before, after = network(x), network(other)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_short_inputs_give_the_same_as_the_beginning_of_long_ones():
    network = GPT(32, 2, 4, vocab_size=11, seq_len=12).eval()
    x = torch.randint(11, (2, 12))
    assert torch.allclose(network(x[:, :5]), network(x)[:, :5], atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16)
    turned = [rotate(v.expand(1, 1, 20, 16), *rotation(20, 16))[0, 0] for v in (q, k)]
    products = turned[0] @ turned[1].T  # [T, T]
    assert torch.allclose(products[3, 1], products[12, 10], atol=1e-4)
    assert not torch.allclose(products[3, 1], products[3, 2], atol=1e-4)


def test_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        assert GPT(16, 1, 2, vocab_size=9, seq_len=8)(torch.arange(8)[None]).dtype == torch.bfloat16


def test_positions_of_a_network_made_in_bfloat16_are_exact():
    try:
        torch.set_default_dtype(torch.bfloat16)
        low = rotation(1000, 32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(low, rotation(1000, 32), strict=True))


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_learns(tie):
    network = GPT(16, 2, 2, dropout=0.1, tie_embeddings=tie, vocab_size=9, seq_len=8)
    network(torch.arange(8)[None] % 9).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPT(dim=10, num_heads=4), "take one of .1, 2, 5, 10"),
        (lambda: GPT(dim=12, num_heads=4), "even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
