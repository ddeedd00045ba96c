import pytest
import torch
from torch import nn

from src.models.cost import forward_flops
from src.run.device import fastest_precision
from src.run.terminal import count


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


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 FLOP"), (9999, "9,999 FLOP"), (10_000, "10 KFLOP"), (7.06e15, "7.06 PFLOP")]
)
def test_numbers_are_readable(n, text):
    assert count(n, "FLOP") == text


@pytest.mark.parametrize(
    ("able", "precision"), [({"avx512_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true")]
)
def test_bfloat16_is_taken_where_a_cpu_computes_in_it(monkeypatch, able, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert fastest_precision("cpu") == precision
