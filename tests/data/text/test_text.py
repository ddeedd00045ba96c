import os
from functools import partial

import numpy as np
import pytest
import torch

from src.data.order import TrainOrder
from src.data.text.module import TextDataModule, Windows, moved
from src.data.text.tokens import decode, encode, make_tokenizer
from src.run.errors import DataError

TEXT = "The quick brown fox, jumps over it.\n" * 60


@pytest.fixture
def make(tmp_path):
    def data(text: bytes = TEXT.encode(), **options):
        (tmp_path / "a.txt").write_bytes(text)
        folders = {"files": [str(tmp_path)], "cache_dir": str(tmp_path / ".cache")}
        module = TextDataModule(**folders | {"seq_len": 16, "batch_size": 12} | options)
        module.setup("fit")
        return module

    return data


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_tokens_become_the_text_again(kind):
    text = "Größe: ∑ x²\n  two  spaces\n"
    tokenizer = make_tokenizer(kind, text, 300)
    assert decode(tokenizer, encode(tokenizer, text).tolist()) == text


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_validation_covers_each_token_once(make, kind):
    data = make(tokenizer=kind, vocab_size=260)
    targets = torch.cat([batch["targets"].flatten() for batch in data.eval_loader("val")])
    ids = targets[targets >= 0].tolist()
    assert decode(data.statistics["tokenizer"], ids) == TEXT[int(len(TEXT) * 0.9) :]
    assert len(ids) == data.report["val"]["tokens"]
    assert data.bytes_per_token("val") * len(ids) == pytest.approx(data.report["val"]["bytes"])


def test_targets_are_the_next_tokens():
    batch = Windows(torch.arange(10), 4, 4)[torch.tensor([0, 2, -1])]
    assert batch["x"][0].tolist() == [0, 1, 2, 3]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [9, -100, -100, -100], [-100] * 4]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_large_ids_and_windows_on_another_device(dtype):
    ids = np.iinfo(dtype).max - np.arange(10, dtype=dtype)
    windows = Windows(torch.from_numpy(ids), 4, 1)
    assert windows[torch.tensor([0, 5])]["x"].tolist() == [ids[:4].tolist(), ids[5:9].tolist()]
    batch = windows.moved(lambda t: t.to("meta"))[torch.tensor([0, 5], device="meta")]
    assert {t.device.type for t in batch.values()} == {"meta"}
    assert batch["targets"].dtype == torch.int64


def test_training_windows_move_from_epoch_to_epoch():
    windows = Windows(torch.arange(1000), 16, 1)
    starts = []
    for epoch in (0, 0, 1, 2, 3):
        order = TrainOrder(len(windows), 4, 4, 0, lambda e=epoch: (e, 0), ordered=partial(moved, 16))
        starts.append(torch.cat(list(order)))
    assert torch.equal(starts[0], starts[1])
    assert len({int(s[0]) % 16 for s in starts}) > 2
    assert all(len(set((s // 16).tolist())) == len(s) and (windows[s]["targets"] >= 0).all() for s in starts)


def test_what_is_removed_is_reported(make, tmp_path):
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "c.TXT").write_text(" \n")
    (tmp_path / "d.txt").write_bytes("ab\nÄ".encode("latin-1"))
    (tmp_path / "e.txt").write_bytes(TEXT.encode("utf-16"))
    (tmp_path / "._a.txt").write_bytes(b"\xff")
    (tmp_path / "f.csv").write_text("1,2")
    (tmp_path / "h.txt").write_bytes(("some text " * 3).encode("utf-16-le"))
    (tmp_path / "g.txt").symlink_to("nowhere")
    data = make(("\x00\x85\ufeff" + TEXT.replace("\n", "\r")).encode(), invalid="skip")
    found = {os.path.basename(r["file"]): (r["reason"], r["detail"]) for r in data.report["removed"]}
    assert found == {
        "b.md": ("duplicate", str(tmp_path / "a.txt")),
        "c.TXT": ("empty", ""),
        "d.txt": ("not UTF-8", "in line 2, at byte 3"),
        "e.txt": ("not UTF-8", "in line 1, at byte 0"),
        "h.txt": ("no text", "30 of 60 characters are control characters, as in UTF-16"),
        "g.txt": ("cannot be read", "No such file or directory"),
    }
    others = f"2 files are hidden or of another kind by their names, as {tmp_path}/._a.txt"
    assert data.report["note"] == f"3 control characters are taken out; {others}"
    assert data.report["came_in"] == 7
    assert data.report["data/missing_frac"] == 4 / 7
    assert data.report["data/duplicate_frac"] == 1 / 7
    assert data.report["test"] == {"same_as": "val", **data.report["val"]}


def test_shift_and_leakage_are_measured(make, tmp_path):
    (tmp_path / "b.md").write_text("zz zz zz " * 30 + "\n" + TEXT[:36] * 10)
    report = make(tokenizer="bytes", val_frac=0.2).report
    assert report["shift"]["test"] == report["shift"]["val"]
    assert report["shift"]["val"]["unseen_tokens"] == 0
    assert 0.1 < report["shift"]["val"]["token_shares"] < 1
    (tmp_path / "b.md").write_text("The quick brown fox jumps over the lazy dog, and on.\n" * 40)
    assert make(tokenizer="bytes", val_frac=0.1).report["shift"]["val"]["lines_in_train"] > 0.9


def test_evaluation_takes_the_checkpoints_tokenizer(make):
    trained = make((TEXT + "~" * 3 + TEXT).encode())
    other = make()
    assert other.statistics != trained.statistics
    other.adopt(trained.state_dict())
    assert other.facts == trained.facts
    targets = torch.cat([batch["targets"].flatten() for batch in other.eval_loader("val")])
    assert decode(trained.statistics["tokenizer"], targets[targets >= 0].tolist()) == TEXT  # all of other text
    assert other.bytes_per_token("test") == 1


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_of_other_text_all_is_measured(make, tmp_path, kind):
    state = make(tokenizer=kind).state_dict()
    for text, wanted in ((TEXT, TEXT[int(len(TEXT) * 0.9) :]), ("fox.\n", "fox.\n"), (TEXT[10:], TEXT[10:])):
        (tmp_path / "a.txt").write_text(text)
        data = TextDataModule([str(tmp_path)], kind, seq_len=16, batch_size=12, cache_dir=str(tmp_path / ".cache"))
        data.fitted = state
        data.setup("test")
        targets = torch.cat([batch["targets"].flatten() for batch in data.eval_loader("test")])
        assert decode(state["statistics"]["tokenizer"], targets[targets >= 0].tolist()) == wanted


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"abc\xff", {}, "a.txt: not UTF-8: in line 1, at byte 3 -> save it as UTF-8, or leave it out"),
        (b"abc\xff", {"invalid": "skip"}, "no text is left"),
        ("abc".encode("utf-16"), {}, "a.txt: not UTF-8: in line 1, at byte 0"),
        (b"", {}, "no text is left"),
        (b"abc", {"tokenizer": "bytes"}, "lower data.seq_len"),
        (TEXT.encode() + b"~", {}, r"the characters \['~'\] were not in the training text -> .* bytes or bpe"),
        (b"", {"files": ["/nowhere"]}, "is not there"),
        (b"", {"files": []}, r"there is no \.txt"),
    ],
)
def test_bad_input(make, text, options, message):
    with pytest.raises(DataError, match=message):
        make(text, **options)


def test_a_folder_without_text(make, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no \.txt"):
        make(files=[str(tmp_path / "empty")])


def test_pythons_reference_needs_no_file_and_is_named(make, tmp_path, capsys):
    data = TextDataModule(tokenizer="bytes", cache_dir=str(tmp_path))
    data.prepare_data()
    said = capsys.readouterr().out
    assert said == "data.files is not given: the text is the language reference that ships with Python.\n"
    make().prepare_data()
    assert not capsys.readouterr().out
    data.setup("fit")
    assert data.facts == {"vocab_size": 256, "seq_len": 64}
    assert data.splits["train"].tokens.numpy().dtype == np.uint8


def test_text_that_was_changed_is_refused_on_resume(make):
    state = make(tokenizer="bytes").state_dict()
    make(tokenizer="bytes").load_state_dict(state)
    with pytest.raises(DataError, match="the data has changed since this run began: content"):
        make(TEXT.replace("fox", "fix").encode(), tokenizer="bytes").load_state_dict(state)
