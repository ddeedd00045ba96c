"""What people's own networks, labels and data get wrong is one line that says where."""

import pytest
import torch
import torchvision
from conftest import (
    SMALL,
    SMALL_CNN,  # kind: images
)
from lightning.pytorch import Trainer
from torch import nn

from src.data.module import Arrays, DataModule
from src.models.classification import Classification
from src.models.factory import build_network
from src.run.errors import ConfigError, DataError


class TooWide(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(100, num_classes)

    def forward(self, x):
        return self.head(x.flatten(1))


class Forgetful(nn.Module):
    def __init__(self, num_classes: int) -> None:
        self.head = nn.Linear(100, num_classes)


class Ready(nn.Linear):
    def __init__(self) -> None:
        super().__init__(100, 2)


class Table(DataModule):
    def __init__(self, arrays, facts) -> None:
        super().__init__(batch_size=10)
        self.arrays, self.given = arrays, facts

    def setup(self, stage: str) -> None:
        self.splits, self.facts = {s: self.arrays() for s in ("train", "val", "test")}, self.given


def fit(network, arrays, facts) -> None:
    model = Classification(network=network, optimizer=torch.optim.AdamW)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule=Table(arrays, facts))


def test_a_square_is_one_number_for_networks_that_take_one():
    facts = {"num_classes": 3, "image_size": (32, 32), "in_channels": 3}
    assert build_network(torchvision.models.vit_b_16, facts).image_size == 32
    with pytest.raises(ConfigError, match=r"unsupported operand type"):  # no square, no number
        build_network(torchvision.models.vit_b_16, {**facts, "image_size": (32, 64)})


LABELS = torch.arange(20) % 2


@pytest.mark.parametrize(
    ("network", "arrays", "facts", "error", "message"),
    [
        (TooWide, lambda: Arrays(torch.rand(20, 9), LABELS), {"num_classes": 2}, ConfigError, r"\[2, 9\]: .*py:\d+"),
        (Forgetful, lambda: Arrays(torch.rand(20, 9), LABELS), {"num_classes": 2}, ConfigError, r"__init__.*py:\d+"),
        (TooWide, lambda: Arrays([1, 2], [0, 1]), {"num_classes": 2}, DataError, "list of 2 .* give two tensors"),
        (TooWide, lambda: Arrays(torch.rand(9, 9), LABELS), {"num_classes": 2}, DataError, "of 9 and Tensor of 20"),
        (Ready, lambda: Arrays(torch.rand(20, 100), LABELS), {}, DataError, r"Table.setup: facts lack num_classes"),
        (
            TooWide,
            lambda: Arrays(torch.rand(20, 100), LABELS.float()),
            {"num_classes": 2},
            DataError,
            r"Table.setup: labels are floating-point -> make them int64",
        ),
        (
            TooWide,
            lambda: Arrays(torch.rand(8, 100), LABELS[:8]),
            {"num_classes": 2},
            DataError,
            "8 samples, fewer than one batch -> lower data.batch_size",
        ),
    ],
)
def test_mistakes_are_told_before_training(network, arrays, facts, error, message):
    with pytest.raises(error, match=message):
        fit(network, arrays, facts)


def test_numbers_are_made_as_the_weights_are():
    fit(TooWide, lambda: Arrays(torch.rand(20, 100, dtype=torch.float64), LABELS), {"num_classes": 2})


# kind: images
def test_a_function_is_taken_where_a_module_has_its_name(run, tmp_path):
    flags = ["--model.network", "torchvision.models.googlenet", "--run_dir", tmp_path / "run", "--dry_run"]
    config = [*SMALL_CNN, "--data.channels", "3"]
    assert "GoogLeNet cannot take x [2, 3, 8, 8]" in run([*config, *flags], code=2)


# end


def test_a_flag_before_its_class_is_told(run):
    config = [*SMALL, "--model.network.widths", "[4,4]"]
    output = run([*config, "--model.network", "torch.nn.Identity", "--print_config"])
    assert "--model.network.widths is dropped, because --model.network comes after it" in output
    output = run([*config, "--model.network", "src.networks.mlp.MLP", "--print_config"])
    assert "is dropped" not in output
