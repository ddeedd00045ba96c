"""Training samples that are left out."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL

from src.data.module import Arrays, DataModule
from src.run.errors import DataError

N = 100


def data_without(tmp_path, text: str, **kwargs) -> DataModule:
    file = tmp_path / "without.txt"
    file.write_text(text)
    data = DataModule(batch_size=8, without=str(file), **kwargs)
    data.splits = {split: Arrays(torch.arange(N).float()[:, None], torch.arange(N)) for split in ("train", "val")}
    return data


def epoch_of(data: DataModule, epoch: int = 0) -> list[int]:
    data.position = lambda: (epoch, 0)
    return torch.cat([batch["index"] for batch in data.train_dataloader()]).tolist()


def test_they_are_in_no_batch_of_training_and_all_others_are(tmp_path):
    data = data_without(tmp_path, "# the worst\n7\n\n 99 # twice\n3\n99\n0\n")
    assert data.left_out.tolist() == [0, 3, 7, 99]
    taken = [epoch_of(data, epoch) for epoch in range(2)]
    assert taken[0] != taken[1]
    for index in taken:
        assert sorted(index) == sorted({*range(N)} - {0, 3, 7, 99})
    assert torch.cat([batch["index"] for batch in data.val_dataloader()]).max() == N - 1
    assert data.num_samples == {"train": N, "val": N}


def test_the_order_of_the_others_is_the_same(tmp_path):
    data = data_without(tmp_path, "5")
    whole = DataModule(batch_size=8)
    whole.splits = data.splits
    rest = [i for i in whole.epoch_order(N, 0, 0)(0, N).tolist() if i != 5]
    assert epoch_of(data) == rest[:96]


def test_an_order_of_its_own_is_kept(tmp_path):
    data = data_without(tmp_path, "\n".join(map(str, range(4))))
    data.epoch_order = lambda n, seed, epoch: (
        torch.arange(n).flip(0).__getitem__
        and (
            lambda start, stop: torch.arange(N).flip(0)[start:stop]  # of all samples, however many are asked for
        )
    )
    assert epoch_of(data) == [*range(N - 1, 3, -1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n100\n", r"without.txt: give indices from 0 to 99, the last of train"),
        ("-1", "give indices from 0 to 99"),
        ("1\nseven", "could not convert string 'seven' .* -> name a text file with one index of train a line"),
        ("1.5", "could not convert string '1.5'"),
        ("\n".join(map(str, range(N))), "train has 0 samples, fewer than one batch"),
        ("\n".join(map(str, range(93))), "train has 7 samples, fewer than one batch"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        data_without(tmp_path, text).train_dataloader()


def test_other_samples_are_other_data(tmp_path):
    state = data_without(tmp_path, "1\n2").state_dict()
    same = data_without(tmp_path, "2 # in another order, in another file\n1")
    same.load_state_dict(state)
    other = DataModule(without=str(tmp_path / "other.txt"))
    (tmp_path / "other.txt").write_text("1\n3")
    other.splits = same.splits
    with pytest.raises(DataError, match=r"the data has changed since this run began: left_out was 2 samples \("):
        other.load_state_dict(state)


def test_a_run_leaves_them_out_and_goes_on_with_the_same_only(run, tmp_path):
    """Two workers fetch; the run ends after an epoch, and goes on for a second with another file under the name."""
    file, args = tmp_path / "without.txt", [*SMALL, "--run_dir", tmp_path / "run", "--trainer.max_epochs", 1]
    args += ["--data.without", file, "--data.num_workers", 2]
    assert "No such file or directory" in run(args, code=3)
    file.write_text("\n".join(map(str, range(600))))
    output = run(args)
    assert "without 600 of train" in output
    assert "10 of 64 samples" in output  # steps, of 693 samples that remain
    file.write_text("\n".join(map(str, range(1, 601))))
    longer = [*SMALL, "--data.without", file, "--data.num_workers", 2, "--resume", tmp_path / "run"]
    assert "the data has changed since this run began: left_out was 600" in run(
        [*longer, "--run_dir", tmp_path / "other"], code=3
    )
    assert Path(tmp_path / "run/config.yaml").read_text().count("without:") == 1
