import math

import pytest
import torch

from src.networks.table_mlp import Periodic, TableMLP


def rows(n: int) -> torch.Tensor:
    """Three numbers and two codes."""
    return torch.cat([torch.randn(n, 3), torch.randint(0, 5, (n, 1)), torch.randint(0, 300, (n, 1))], 1)


def network(**options) -> TableMLP:
    return TableMLP(**{"dim": 16, "num_classes": 2, "in_features": 3, "cardinalities": [5, 300]} | options)


@pytest.mark.parametrize("options", [{}, {"num_frequencies": 0}, {"depth": 1}])
def test_each_number_and_each_code_counts(options):
    model, x = network(**options).eval(), rows(6).requires_grad_()
    logits = model(x)
    assert logits.shape == (6, 2)
    logits.sum().backward()
    assert (x.grad[:, :3] != 0).all()
    for column, other in ((3, 4.0), (4, 299.0)):
        changed = x.detach().clone()
        changed[:, column] = torch.where(changed[:, column] == other, other - 1, other)
        assert (model(changed) != logits).any(1).all()


def test_categories_that_train_may_not_have_begin_as_nothing():
    for table in network().categories:
        assert table.weight[:2].eq(0).all()
        assert table.weight[2:].ne(0).all()
    assert [table.embedding_dim for table in network(max_category_dim=8).categories] == [3, 8]


def test_periodic_embeddings_are_the_formula():
    layer, x = Periodic(2, 3, 0.5, 4), torch.randn(5, 2)
    out = layer(x).view(5, 2, 4)
    for n in range(5):
        for f in range(2):
            angles = 2 * math.pi * layer.frequencies[f] * x[n, f]
            waves = torch.cat([angles.cos(), angles.sin()])
            assert torch.allclose(out[n, f], (waves @ layer.weight[f] + layer.bias[f]).relu(), atol=1e-5)


def test_bfloat16_keeps_codes_and_periods():
    torch.manual_seed(0)
    model, x = network().eval(), rows(64)
    exact = model(x)
    rounded = model.bfloat16()(x)  # codes above 256 come as float32
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(network()(x)).all()


def test_without_categories():
    assert TableMLP(dim=8, in_features=3, num_classes=1)(torch.randn(4, 3)).shape == (4, 1)
