"""What people's own networks, labels and data get wrong is one line that says where."""

from functools import partial

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
from src.models.factory import accepted, build_network, build_schedule, forward_flops
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


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def fit(network, arrays, facts) -> None:
    model = Classification(network=network, optimizer=torch.optim.AdamW)
    Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(model, datamodule=Table(arrays, facts))


def test_a_square_is_one_number_for_networks_that_take_one():
    facts = {"num_classes": 3, "image_size": (32, 32), "in_channels": 3}
    assert build_network(torchvision.models.vit_b_16, facts).image_size == 32
    with pytest.raises(ConfigError, match=r"unsupported operand type"):  # no square, no number
        build_network(torchvision.models.vit_b_16, {**facts, "image_size": (32, 64)})


class Base:
    def __init__(self, num_classes: int, image_size: tuple[int, int] = (8, 8)) -> None:
        self.num_classes, self.image_size = num_classes, image_size


class Derived(Base):
    def __init__(self, dim=4, **kwargs) -> None:
        super().__init__(**kwargs)


class Closed(Derived):
    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__(num_classes=num_classes)


def make_derived(depth: "int" = 1, **kwargs) -> Derived: ...


@pytest.mark.parametrize(
    ("factory", "wanted"),
    [
        (Base, {"num_classes": True, "image_size": False}),
        (Derived, {"dim": True, "num_classes": True, "image_size": False}),
        (Closed, {"num_classes": True, "dim": None, "image_size": None}),
        (partial(Derived, dim=3), {"dim": True, "image_size": False}),
        (make_derived, {"depth": True, "dim": True, "num_classes": True, "image_size": False}),
        (lambda p, lr: None, {"lr": False, "weight_decay": None}),
        (torchvision.models.resnet18, {"num_classes": True, "image_size": None, "groups": True}),
        (torchvision.models.vit_b_16, {"num_classes": True, "image_size": True, "patch_size": True}),
        (torchvision.models.densenet121, {"num_classes": True, "memory_efficient": False}),
        (torchvision.models.googlenet, {"num_classes": True, "aux_logits": False}),
        (torch.optim.AdamW, {"weight_decay": False, "num_steps": None}),
        (torch.optim.Rprop, {"weight_decay": None, "lr": False}),
    ],
)
def test_arguments_that_a_class_or_function_takes(factory, wanted):
    found = accepted(factory)
    assert {name: found.get(name) for name in wanted} == wanted


def test_facts_that_a_config_states_must_be_those_of_the_data():
    facts = {"num_classes": 3, "image_size": (8, 8)}
    network = partial(TooWide, num_classes=3)
    assert build_network(network, facts).head.out_features == 3
    assert build_network(partial(Sized, image_size=[8, 8]), facts).image_size == (8, 8)
    with pytest.raises(ConfigError, match=r"model.network.num_classes: 4 in the config, 3 in the data -> drop it"):
        build_network(partial(TooWide, num_classes=4), facts)
    with pytest.raises(ConfigError, match=r"model.network.image_size: \[8, 4\] in the config"):
        build_network(partial(Sized, image_size=[8, 4]), facts)


class Sized(nn.Module):
    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size


def test_a_schedule_gets_the_steps_that_it_asks_for():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    assert build_schedule(one_cycle, optimizer, 7.0).total_steps == 7
    build_schedule(partial(torch.optim.lr_scheduler.StepLR, step_size=3), optimizer, float("inf"))
    with pytest.raises(ConfigError, match="training has no end"):
        build_schedule(one_cycle, optimizer, float("inf"))


class Coloured(DataModule):
    def setup(self, stage: str) -> None:
        rand, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
        self.splits, self.facts = {s: Arrays(rand, labels) for s in ("train", "val", "test")}, {"num_classes": 2}

    def hint(self, message: str) -> str:
        return "take channels 3" if "to have 3 channels" in message else ""


def test_the_data_module_says_what_to_do_about_a_shape():
    model = Classification(network=partial(nn.Conv2d, 3, 2, 4), optimizer=torch.optim.AdamW)
    with pytest.raises(ConfigError, match=r"cannot take x \[2, 1, 4, 4\]: .*3 channels.* -> take channels 3$"):
        Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(model, datamodule=Coloured(batch_size=10))


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
            r"Table.setup: labels are torch.float32 \[20\] -> make them int64",
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


def test_flops_are_two_for_each_multiply_add():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 10))
    mode = [module.training for module in network.modules()]
    assert forward_flops(network, torch.rand(2, 3, 4, 4))[0] == 2 * 2 * (16 * 8 * 27 + 8 * 16 * 10)
    assert network[1].num_batches_tracked == 0
    assert [module.training for module in network.modules()] == mode


def test_an_lstm_is_counted():
    assert forward_flops(Last(nn.LSTM(28, 64, batch_first=True)), torch.rand(2, 5, 28))[0] == 2 * 2 * 5 * 4 * 64 * (
        28 + 64
    )


class Last(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


class Chooses(nn.Linear):
    def forward(self, x):
        return super().forward(x[x.sum(1).nonzero().flatten()])


class Looks(nn.Linear):
    def forward(self, x):
        return super().forward(x * x.max().item() if x.min() < 5 else x)


class HasItsOwnDevice(nn.Linear):
    def forward(self, x):
        return super().forward(x + torch.zeros(2, 3))


@pytest.mark.parametrize("kind", [Chooses, Looks, HasItsOwnDevice])
def test_what_needs_real_numbers_is_run(kind):
    network = kind(3, 4)
    assert forward_flops(network, torch.rand(2, 3))[0] == 2 * 2 * 3 * 4
    assert network.training


def test_what_needs_real_numbers_but_has_none_is_not_counted():
    with torch.device("meta"):
        network = Chooses(3, 4)
    assert forward_flops(network, torch.rand(2, 3))[0] is None


def test_a_wrong_shape_is_told():
    with pytest.raises(RuntimeError):
        forward_flops(nn.Linear(3, 4), torch.rand(2, 5))


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


def test_a_fact_that_a_data_module_does_not_declare_is_told():
    class Declares(Table):
        provides = ("num_classes",)

    data = Declares(lambda: Arrays(torch.randn(100, 4), torch.arange(100) % 2), {"num_classes": 2, "num_rows": 3})
    model = Classification(network=lambda num_classes: nn.Linear(4, num_classes), optimizer=torch.optim.AdamW)
    with pytest.raises(ConfigError, match=r"^Declares.provides lacks the fact num_rows -> add it there$"):
        Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(model, datamodule=data)
