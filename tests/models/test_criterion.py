import numpy as np
import pytest
import torch

from src.models.criterion import Criterion, own_unit
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
        criterion = Criterion("quantile", tuple(sorted({q, 0.5})), 1.0)
        others = torch.full((4000, criterion.num_outputs), 1.0)
        others[:, criterion.quantiles.index(q)] = torch.nan
        losses = torch.stack([criterion(others.nan_to_num(value.item()), targets).mean() for value in grid])
        assert grid[losses.argmin()].item() == pytest.approx(targets.quantile(q).item(), abs=0.02)


def test_the_middle_quantile_is_the_prediction():
    criterion = Criterion("quantile", (0.05, 0.5, 0.8), 1.0)
    assert criterion.num_outputs == 3
    outputs = torch.tensor([[1.0, 2.0, 3.0]])
    assert criterion.point(outputs).tolist() == [2.0]
    found = {name: values.tolist() for name, values in criterion.columns(outputs, ("y", 10.0, 2.0), "_y").items()}
    names = ("prediction_y", "prediction_y_0.05", "prediction_y_0.5", "prediction_y_0.8")
    assert found == dict(zip(names, ([14], [12], [14], [16]), strict=True))
    assert list(Criterion("mae", (0.5,), 1.0).columns(outputs[:, :1], ("y", 0.0, 1.0))) == ["prediction"]


def test_own_units_keep_the_digits_of_large_numbers_and_no_noise():
    values = torch.tensor([(43.862 - 40) / 5, (41.1 - 40) / 5])
    assert own_unit(values, ("y", 40.0, 5.0)).tolist() == [43.862, 41.1]
    values = torch.tensor([0.02, -1.5])  # of targets around 1.7e9, which float32 keeps to the nearest 128
    assert own_unit(values, ("y", 1.7e9, 50.0)).tolist() == pytest.approx([1.7e9 + 1, 1.7e9 - 75], abs=1e-3)
    assert own_unit(torch.tensor([0.5]), ("y", 0.0, 3e8)).tolist() == [1.5e8]


@pytest.mark.parametrize(
    ("quantiles", "delta", "message"),
    [
        ((0.5, 0.1), 1.0, "in order"),
        ((0.0, 0.5), 1.0, "between 0 and 1"),
        ((), 1.0, "add 0.5"),
        ((0.1, 0.9), 1.0, "add 0.5"),
        ((0.5,), 0.0, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(quantiles, delta, message):
    with pytest.raises(ConfigError, match=message):
        Criterion("quantile", quantiles, delta)
