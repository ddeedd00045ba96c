"""What is planned, against real steps: the benchmark has the whole grid (benchmarks/plan.py)."""

import numpy as np
import pytest
import torch
import torchvision
from conftest import SMALL
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plan import plan, train
from src.cost.kernels import nbytes, scratch
from src.cost.memory import Step, measure
from src.cost.tracker import peak
from src.networks.gpt import GPT  # kind: text

WIDE = [*SMALL, "--model.network.widths", "[512,512]"]


class Wrapped(nn.Module):
    """As a LightningModule, as far as a plan knows one."""

    def __init__(self, network):
        super().__init__()
        self.network, self.trainer = network, None

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch["x"]).flatten(0, -2), batch["targets"].flatten())


class Recurrent(nn.Module):
    def __init__(self, bidirectional=False):
        super().__init__()
        self.rnn = nn.LSTM(16, 32, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(32 * (1 + bidirectional), 5)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def usage(network, batch, **how):
    return measure(Wrapped(network), sgd, {**batch, "index": torch.arange(2)}, {}, Step(**how))


def images(size=64):
    return {"x": torch.randn(2, 3, size, size), "targets": torch.randint(10, (2,))}


@pytest.mark.parametrize("flags", [
    "", "--trainer.gradient_clip_val 1 --ema.decay 0.9 --data.micro_batch_size 8",
    "--trainer.precision bf16-mixed --model.freeze ['blocks.0.*']", "--model.optimizer src.optim.muon.Muon",
    "--model.optimizer torch.optim.AdamW --model.optimizer.lr 0.1",
])  # fmt: skip
@pytest.mark.in_fork
def test_the_peak_is_that_of_a_run(flags, loaded):
    planned, real = (task([*WIDE, *flags.split()], 0) for task in (plan, train))
    assert planned["unknown"] == ""
    assert planned["peak"] == pytest.approx(real["peak"], rel=0.02)


@pytest.mark.parametrize("make", [torchvision.models.resnet18, torchvision.models.alexnet])
def test_operations_are_those_of_a_real_step(make):
    network, batch = make(num_classes=10), images()
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(batch["x"]), batch["targets"]).backward()
    assert usage(network, batch).flops == counter.get_total_flops()


# kind: text
def test_operations_of_a_language_model_are_those_of_the_closed_form():
    """6 N T + 12 L h s T, with the head and without the embedding's look-up (PaLM, appendix B)."""
    dim, depth, length, size = 64, 3, 128, 2
    network = GPT(dim, depth, 4, vocab_size=100, seq_len=length)
    tokens = torch.randint(100, (size, length))
    used = usage(network, {"x": tokens, "targets": tokens})
    matrices = sum(p.numel() for name, p in network.named_parameters() if p.ndim > 1)
    assert used.flops == pytest.approx((6 * matrices + 12 * depth * dim * length) * size * length, rel=0.1)


# end


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstms_are_counted_though_torch_does_not(bidirectional):
    network, batch = Recurrent(bidirectional), {"x": torch.randn(2, 7, 16), "targets": torch.randint(5, (2,))}
    sides = 1 + bidirectional
    layers = sides * 8 * 32 * (16 + 32) + sides * 8 * 32 * (32 * sides + 32)
    head = 2 * 2 * 32 * sides * 5
    assert usage(network, batch).flops == 3 * (2 * 7 * layers + head)


def test_a_depthwise_convolution_takes_twice_as_much_backward():
    network = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(32, 10))  # fmt: skip
    first, depthwise, head = 2 * 2 * 64 * 64 * 3 * 32, 2 * 2 * 64 * 64 * 32 * 9, 2 * 2 * 32 * 10
    assert usage(network, images()).flops == 2 * first + 3 * depthwise + 3 * head  # x needs no gradient


def test_what_is_computed_again_is_told_apart():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), nn.Linear(64, 10)

        def forward(self, x):
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))

    used = usage(Again(), {"x": torch.randn(2, 64), "targets": torch.randint(10, (2,))})
    assert used.recomputed in (2 * 2 * 64 * 64 * 2, 2 * 2 * 64 * 64)  # it may stop before the last layer
    assert used.flops - used.recomputed == 2 * 2 * (64 * 64 * (2 + 3) + 3 * 64 * 10)


def test_a_share_of_the_states_is_kept():
    batch = {"x": torch.randn(2, 64), "targets": torch.randint(10, (2,))}
    used = usage(nn.Linear(64, 10), batch)
    whole, shared = peak(used.update, {}), peak(used.update, {"weights": 1 / 4, "gradients": 1 / 4})
    for part in ("weights", "gradients"):
        assert shared[part] == whole[part] / 4
    assert whole["weights"] == 4 * 650


def test_the_model_and_the_random_numbers_stay_as_they_are():
    network = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))
    before = [p.detach().clone() for p in network.parameters()]
    batch = {"x": torch.randn(2, 64), "targets": torch.randint(10, (2,))}
    state = torch.get_rng_state()
    usage(network, batch)
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, before, network.parameters()))
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "size", "channels", "groups"), [
    (3, 16, 96, 96), (5, 16, 96, 96), (3, 2, 96, 96), (3, 3, 96, 96), (5, 16, 96, 24), (3, 16, 96, 24)
])  # fmt: skip
def test_grouped_convolutions_take_what_their_kernels_do(kernel, size, channels, groups, dtype):
    w = torch.randn(channels, channels // groups, kernel, kernel, dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.randn(16, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    args = (x, x, w, None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], groups, [True, True, False])
    convolution = torch.ops.aten.convolution_backward.default
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        convolution(*args)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    real = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max()
    planned = nbytes(x) + nbytes(w) + scratch(convolution, args)
    assert 0.95 * real < planned < 1.8 * real
