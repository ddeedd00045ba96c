"""Training data on the device. A CPU is a device like others here, and so is `meta`."""

import pytest
import torch

from src.data.loader import Arrays, Loader
from src.data.module import DataModule
from src.data.order import TrainOrder
from src.data.placing import is_small, num_bytes, placed
from src.run.errors import ConfigError, EnvironmentFault

ARRAYS = Arrays(torch.arange(40).float()[:, None], torch.arange(40))
CPU, META, GPU = torch.device("cpu"), torch.device("meta"), torch.device("cuda")


class Doubled(Arrays):
    """Takes batches in its own way, of which `moved` does not know."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "more": index * 2}


class Huge(Arrays):
    """Is more than fits into memory, when it is moved."""

    calls = 0

    def moved(self, move):
        self.calls += 1
        return super().moved(move) if self.calls == 1 else torch.empty(2**56)  # first its bytes are counted


@pytest.mark.parametrize(("how", "device"), [(True, META), (True, CPU), ("auto", CPU), (False, META), (True, None)])
def test_where_they_lie(how, device):
    arrays, where = placed(ARRAYS, device, how)
    moves = how is True and device is not None
    assert where == (device if moves else None)
    assert (arrays is not ARRAYS) == moves
    assert arrays.x.device == (device if moves else CPU)
    assert ARRAYS.x.device == CPU


def test_a_batch_is_gathered_there():
    order = TrainOrder(40, 8, 8, 0, lambda: (0, 0))
    arrays, device = placed(ARRAYS, META, True)
    batch = next(iter(Loader(arrays, order, device=device)))
    assert {name: t.device for name, t in batch.items()} == dict.fromkeys(("x", "targets", "index"), META)
    arrays, device = placed(ARRAYS, CPU, True)
    for got, wanted in zip(Loader(arrays, order, device=device), Loader(ARRAYS, order), strict=True):
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_auto_leaves_a_gpu_room(monkeypatch):
    """There is no GPU here: what it would say is given, and that the data would go there is seen by torch's refusal."""
    size = num_bytes(ARRAYS)
    assert size == 40 * 4 + 40 * 8
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 * size - 1, 32 * size))
    assert placed(ARRAYS, GPU, "auto") == (ARRAYS, None)
    assert placed(Doubled(ARRAYS.x, ARRAYS.targets), GPU, "auto")[1] is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 * size, 32 * size))
    if torch.cuda.is_available():
        assert placed(ARRAYS, GPU, "auto")[0].x.device.type == "cuda"
    else:
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            placed(ARRAYS, GPU, "auto")


@pytest.mark.parametrize(
    ("size", "free", "small"),
    [(1, 15, False), (1, 16, True), (2**31, 2**35, True), (2**31, 2**35 - 1, False), (2**31 + 1, 2**38, False)],
)
def test_auto_takes_a_sixteenth_and_two_gib_at_most(size, free, small):
    assert is_small(size, free) == small


def test_what_cannot_be_moved():
    with pytest.raises(ConfigError, match=r"data.on_device: Doubled does not say how it is moved -> give it"):
        placed(Doubled(ARRAYS.x, ARRAYS.targets), META, True)
    with pytest.raises(EnvironmentFault, match=r"data.on_device: cpu has no room for train's .* GiB -> take auto"):
        placed(Huge(ARRAYS.x, ARRAYS.targets), CPU, True)
    with pytest.raises(ConfigError, match=r"data.on_device: no workers fetch there -> .* data.num_workers 2"):
        DataModule(num_workers=2, on_device=True)
