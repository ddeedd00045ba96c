from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.utils.data import Dataset

from src.data.module import DataModule
from src.data.waves import WavesDataModule
from src.models.forecasting import Forecasting
from src.networks.dlinear import DLinear
from src.run.errors import ConfigError

WINDOW, HORIZON, MEAN, STD = 6, 4, [10.0, -2.0], [3.0, 0.5]


class Windows(Dataset):
    """Random walks of two channels, of which some values of the future are not known."""

    def __init__(self, size: int, seed: int, evaluated: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        walks = torch.randn(size, WINDOW + HORIZON, 2, generator=generator).cumsum(1)
        self.x, self.targets = walks[:, :WINDOW], walks[:, WINDOW:].clone()
        self.targets[torch.rand(self.targets.shape, generator=generator) < 0.2] = torch.nan
        self.seasonal, self.evaluated = walks[:, WINDOW - HORIZON : WINDOW], evaluated

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index):
        rows = index.clamp(min=0)
        batch = {"x": self.x[rows], "targets": self.targets[rows], "index": index}
        return batch | ({"seasonal": self.seasonal[rows]} if self.evaluated else {})


class Walks(DataModule):
    provides = ("window", "horizon", "in_channels", "out_channels")

    def __init__(self, by_window: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.by_window = by_window

    def setup(self, stage: str) -> None:
        sizes = {"train": 320, "val": 50, "test": 70}
        self.splits = {name: Windows(n, i, name != "train") for i, (name, n) in enumerate(sizes.items())}
        self.facts = {"window": WINDOW, "horizon": HORIZON, "in_channels": 2, "out_channels": 2}
        self.statistics = {"targets": {"names": ["load", "a/b"], "mean": MEAN, "std": STD}}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if not self.by_window:
            return batch
        mean, std = batch["x"].mean(1, keepdim=True), batch["x"].std(1, keepdim=True) + 1e-5
        return {**batch, "x": (batch["x"] - mean) / std, "mean": mean, "std": std}


def fitted(tmp_path, by_window=False, epochs=2, **how):
    seed_everything(0, verbose=False)
    data = Walks(by_window, batch_size=32, cache_dir=str(tmp_path))
    network = partial(DLinear, kernel_size=3)
    model = Forecasting(network=network, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), **how)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=5,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer, model, data


def outputs_of(model, data) -> np.ndarray:
    """What the model forecasts of the test, by hand: [N, horizon, channels, numbers]."""
    batch = data.on_after_batch_transfer(data.splits["test"][torch.arange(70)], 0)
    with torch.no_grad():
        found = model.network(batch["x"]).unflatten(-1, (2, -1)).numpy()
    if data.by_window:
        found = found * batch["std"].numpy()[..., None] + batch["mean"].numpy()[..., None]
    return found


@pytest.mark.parametrize("by_window", [False, True])
def test_metrics_are_of_the_known_targets_alone(tmp_path, by_window):
    trainer, model, data = fitted(tmp_path, by_window)
    metrics = trainer.test(model, datamodule=data, verbose=False)[0]
    split, found = data.splits["test"], outputs_of(model, data)[..., 0]
    targets = split.targets.numpy()
    known = np.isfinite(targets)
    assert not known.all()
    naive = np.repeat(split.x[:, -1:].numpy(), HORIZON, 1)
    for name, forecast in (("", found), ("naive_", naive), ("seasonal_", split.seasonal.numpy())):
        errors = (forecast - targets)[known]
        assert metrics[f"test/{name}mse"] == pytest.approx((errors**2).mean(), rel=1e-4)
        assert metrics[f"test/{name}mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert metrics["test/loss"] == metrics["test/mse"]
    for channel, name in enumerate(("load", "a_b")):
        errors = (found - targets)[:, :, channel][known[:, :, channel]] * STD[channel]
        assert metrics[f"test/rmse_{name}"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-4)
        assert metrics[f"test/mae_{name}"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert {"forecasts", "error_by_step"} == set(model.pictures())


def test_while_training_only_what_changes_is_logged(tmp_path):
    trainer, _, _ = fitted(tmp_path)
    assert {name for name in trainer.callback_metrics if name.startswith("val/")} == {"val/loss", "val/mse", "val/mae"}


def test_quantiles_cover_what_they_say(tmp_path):
    trainer, model, data = fitted(tmp_path, epochs=30, loss="quantile", quantiles=(0.1, 0.5, 0.9))
    metrics = trainer.test(model, datamodule=data, verbose=False)[0]
    found, targets = outputs_of(model, data), data.splits["test"].targets.numpy()
    known = np.isfinite(targets)
    inside = ((targets >= found.min(-1)) & (targets <= found.max(-1)))[known].mean()
    assert metrics["test/coverage"] == pytest.approx(inside, rel=1e-4)
    assert 0.7 < inside < 0.9


def test_predictions_are_in_the_channels_own_units(tmp_path):
    trainer, model, data = fitted(tmp_path, loss="quantile", quantiles=(0.2, 0.5))
    batches = trainer.predict(model, datamodule=data)
    joined = {name: torch.cat([batch[name] for batch in batches])[:70] for name in batches[0]}
    columns = model.columns({name: joined[name] for name in ("targets", "outputs")}, data)
    assert list(columns) == [
        *("target_load", "prediction_load", "prediction_load_0.2", "prediction_load_0.5"),
        *("target_a/b", "prediction_a/b", "prediction_a/b_0.2", "prediction_a/b_0.5"),
    ]
    found = np.sort(outputs_of(model, data), -1)[:, :, 1, 1].reshape(-1) * STD[1] + MEAN[1]
    assert columns["prediction_a/b"] == pytest.approx(found, rel=1e-4)
    targets = data.splits["test"].targets[..., 1].flatten() * STD[1] + MEAN[1]
    assert np.isnan(columns["target_a/b"]).tolist() == targets.isnan().tolist()
    assert (columns["prediction_a/b_0.2"] <= columns["prediction_a/b_0.5"]).all()


def test_the_gradient_does_not_depend_on_how_a_batch_is_divided(tmp_path):
    _, model, data = fitted(tmp_path, epochs=1)
    batch = data.splits["train"][torch.arange(8)]
    batch["targets"][:3] = torch.nan

    def gradient(size: int) -> torch.Tensor:
        model.zero_grad()
        for i in range(0, 8, size):
            part = {name: values[i : i + size] for name, values in batch.items()}
            (model.training_step(part, 0) * size / 8).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.allclose(gradient(8), gradient(2), rtol=1e-4, atol=1e-6)


def test_data_without_a_horizon_is_refused(tmp_path):
    model = Forecasting(network=DLinear, optimizer=lambda p: torch.optim.Adam(p))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="WavesDataModule has no horizon to forecast"):
        trainer.fit(model, datamodule=WavesDataModule(cache_dir=str(tmp_path)))


def test_a_batch_of_which_nothing_is_known_teaches_nothing(tmp_path):
    _, model, data = fitted(tmp_path, epochs=1)
    batch = data.splits["train"][torch.arange(8)]
    batch["targets"] = torch.full_like(batch["targets"], torch.nan)
    model.trainer.training = True
    loss = model.training_step(batch, 0)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_a_network_of_another_shape_is_refused(tmp_path):
    class Short(nn.Module):
        def __init__(self, window: int, horizon: int) -> None:
            super().__init__()
            self.linear = nn.Linear(window, horizon - 1)

        def forward(self, x):
            return self.linear(x.transpose(1, 2)).transpose(1, 2)

    data = Walks(batch_size=32, cache_dir=str(tmp_path))
    model = Forecasting(network=Short, optimizer=lambda p: torch.optim.Adam(p))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(Exception, match=r"gives \[2, 3, 2\].*logits \[2, 4, 2\] are wanted"):
        trainer.fit(model, datamodule=data)
