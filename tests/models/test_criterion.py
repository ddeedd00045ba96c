import numpy as np
import pytest
import torch

from src.models.criterion import Criterion
from src.run.errors import ConfigError


def test_each_loss_is_its_formula():
    outputs, targets = torch.randn(50, 1), torch.randn(50)
    errors = outputs[:, 0] - targets
    assert torch.allclose(Criterion("mse", (0.5,), 1.0)(outputs, targets), errors**2)
    assert torch.allclose(Criterion("mae", (0.5,), 1.0)(outputs, targets), errors.abs())
    wanted = torch.where(errors.abs() < 0.3, errors**2 / 2, 0.3 * (errors.abs() - 0.15))
    assert torch.allclose(Criterion("huber", (0.5,), 0.3)(outputs, targets), wanted)


def test_the_pinball_loss_is_least_at_the_quantiles():
    """Of a sample, by a search over a grid, without the loss knowing of quantiles."""
    targets = torch.from_numpy(np.random.default_rng(0).exponential(size=4000)).float()
    grid = torch.linspace(0, 4, 401)
    for q in (0.1, 0.5, 0.9):
        criterion = Criterion("quantile", (q,), 1.0)
        losses = torch.stack([criterion(value.expand(4000, 1), targets).mean() for value in grid])
        assert grid[losses.argmin()].item() == pytest.approx(targets.quantile(q).item(), abs=0.02)


def test_the_middle_quantile_is_the_prediction():
    criterion = Criterion("quantile", (0.05, 0.4, 0.8), 1.0)
    assert criterion.num_outputs == 3
    outputs = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert criterion.point(outputs).tolist() == [[2.0]]
    assert list(criterion.columns(outputs[0])) == ["prediction_0.05", "prediction_0.4", "prediction_0.8"]
    assert Criterion("mae", (0.1, 0.9), 1.0).columns(outputs[0, :, :1]) == {}


@pytest.mark.parametrize(
    ("quantiles", "delta", "message"),
    [((0.5, 0.1), 1.0, "in order"), ((0.0, 0.5), 1.0, "between 0 and 1"), ((), 1.0, "give"), ((0.5,), 0.0, "above 0")],
)
def test_what_cannot_be_is_refused(quantiles, delta, message):
    with pytest.raises(ConfigError, match=message):
        Criterion("quantile", quantiles, delta)
