import pytest
import torch

from src.data.module import Arrays, DataModule, Loader
from src.data.order import EvalOrder, TrainOrder
from src.run.errors import ConfigError, DataError

ARRAYS = Arrays(torch.arange(40).float()[:, None], torch.arange(40))


@pytest.mark.parametrize(
    ("batch_size", "micro", "world_size", "at_once", "accumulated"),
    [(64, None, 1, 64, 1), (64, 16, 1, 16, 4), (64, None, 4, 16, 1), (64, 4, 4, 4, 4), (1, None, 1, 1, 1)],
)
def test_batch_size_is_over_all_devices(batch_size, micro, world_size, at_once, accumulated):
    data = DataModule(batch_size, micro)
    assert data.divide_batch(world_size) == accumulated
    assert data.micro_batch_size == at_once


@pytest.mark.parametrize(
    ("batch_size", "micro", "world_size", "message"),
    [
        (10, 4, 1, r"micro_batch_size: 4 does not divide 10 -> take one of \[1, 2, 5, 10\]"),
        (10, 20, 1, "does not divide 10"),
        (10, -1, 1, "does not divide 10"),
        (10, None, 4, r"batch_size: 10 over 4 devices -> take one of \[8, 12\]"),
        (1, None, 4, r"take one of \[4\]"),
    ],
)
def test_what_does_not_divide_is_refused(batch_size, micro, world_size, message):
    with pytest.raises(ConfigError, match=message):
        DataModule(batch_size, micro).divide_batch(world_size)


def test_a_batch_may_hold_what_is_no_tensor():
    meta = torch.device("meta")
    for batch in ({"x": torch.ones(2)}, {"x": torch.ones(2), "names": ["a", "b"], "more": {"y": torch.ones(1)}}):
        moved = DataModule().transfer_batch_to_device(batch, meta, 0)
        assert moved["x"].device == meta
        assert moved.get("names") == batch.get("names")
    assert moved["more"]["y"].device == meta


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing_and_draw_nothing(run, num_workers):
    def take_two_epochs(_) -> int:
        state = torch.get_rng_state()
        loader = Loader(ARRAYS, TrainOrder(40, 8, 8, 0, lambda: (3, 2)), num_workers)
        batches = [ARRAYS[index] for index in TrainOrder(40, 8, 8, 0, lambda: (3, 2))]
        for epoch in [list(loader) for _ in range(2)]:
            assert len(epoch) == 3
            for got, expected in zip(epoch, batches, strict=True):
                assert all(torch.equal(got[name], expected[name]) for name in ("x", "targets", "index"))
        assert torch.equal(torch.get_rng_state(), state)
        return 0

    run([], command=take_two_epochs)  # in a process of its own: with workers it starts a thread, and this one is forked


def test_padding_has_index_minus_one():
    last = list(Loader(ARRAYS, EvalOrder(40, 16)))[-1]
    assert last["index"].tolist() == [*range(32, 40), *[-1] * 8]
    assert last["x"].shape == (16, 1)


def test_empty_and_too_small_sets_are_refused():
    data = DataModule(batch_size=64)
    data.splits = {"train": ARRAYS, "val": ARRAYS, "test": Arrays(torch.empty(0, 1), torch.empty(0))}
    with pytest.raises(DataError, match="the test split is empty"):
        data.check_sizes()
    data.splits["test"] = ARRAYS
    with pytest.raises(DataError, match=r"40 samples, fewer than one batch -> lower data.batch_size from 64"):
        data.check_sizes()


def test_other_data_is_refused():
    data = DataModule()
    data.splits, data.facts = {"train": ARRAYS}, {"num_classes": 3}
    state = data.state_dict()
    data.load_state_dict(state)
    data.facts = {"num_classes": 4}
    with pytest.raises(DataError, match="the data has changed since this run began: facts"):
        data.load_state_dict(state)


def test_batches_for_a_gpu_are_page_locked(monkeypatch):
    locked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: locked.append(t) or t)
    assert len(list(Loader(ARRAYS, EvalOrder(40, 20)))) == 2
    assert len(locked) == 2 * 3
