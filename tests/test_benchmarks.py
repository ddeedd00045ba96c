"""What benchmarks read of their peers' answers, here from stand-ins: the peers themselves are not there."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.in_process import Stopwatch
from benchmarks.side_by_side import in_turn


def stand_in(folder: Path, *answer: str) -> str:
    """An interpreter that notes what it is asked for, and prints these lines whatever that is."""
    python = folder / "python"
    lines = "\n".join(f"echo '{line}'" for line in ("a warning", *answer))
    python.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n{lines}\necho a complaint >&2\n')
    python.chmod(0o755)
    return str(python)


def test_start_up_is_not_timed(monkeypatch):
    clock = iter([5.0, 6.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch(first=3)
    for step in range(1, 6):
        watch.on_train_batch_end(SimpleNamespace(global_step=step))
    assert watch.seconds() == 2.5


def test_each_repeat_is_told_when_it_is_done(capsys):
    times = in_turn({"a": lambda i: i + 1.0, "b": lambda i: len(capsys.readouterr().err.splitlines())}, repeats=2)
    assert times == {"a": [1.0, 2.0], "b": [1, 3]}  # each line is there before the next side
    assert capsys.readouterr().err.splitlines()[-1] == "b, repeat 2 of 2: 3"


# kind: images
def test_mnist_in_keras(tmp_path):
    from benchmarks import mnist_99, mnist_epoch

    python = stand_in(tmp_path, '{"us": 100.0, "acc": 0.9875, "val_acc": [0.98]}')
    args = Namespace(data_dir="here", batch_size=128, steps=3, threads=1, keras=python)
    seconds, training = mnist_epoch.peer(args, "keras", 7, python)
    assert seconds > 0
    assert training == pytest.approx(100e-6 * 54_000)
    assert "mnist_keras.py --data_dir here --seed 7 --batch_size 128 --limit 384" in (tmp_path / "asked").read_text()
    assert mnist_99.keras(args, 7)[1] == 0.9875
    assert "--epochs 10 --seed 7 --limit 384" in (tmp_path / "asked").read_text()


def test_mnist_in_the_hydra_template(tmp_path):
    from benchmarks import mnist_99

    table = ("|      test/acc             |    0.9123000264167786     |", "|  test/acc  |  0.9890000224113464  |")
    args = Namespace(data_dir="here", steps=3, threads=1, lht=tmp_path, lht_python=stand_in(tmp_path, *table))
    assert mnist_99.hydra_template(args, 7)[1] == pytest.approx(0.989)
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("src/train.py trainer=cpu data.data_dir=here/ seed=7 model.net._target_=mnist_net.Net")
    assert asked.endswith("+trainer.limit_train_batches=3\n")


# end
# kind: series
@pytest.mark.in_fork
def test_a_forecaster_in_keras(tmp_path):
    from benchmarks import lstm_forecaster

    python = stand_in(tmp_path, "STEPS 12.5")
    assert lstm_forecaster.keras(python, 8, 4, 3, 0) == 12.5
    with pytest.raises(SystemExit, match="a complaint"):
        lstm_forecaster.keras(stand_in(tmp_path, "no figure"), 8, 4, 3, 0)


# end
# kind: text
MODEL = """
from types import SimpleNamespace
import torch

class GPTConfig(SimpleNamespace):
    pass

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.logits = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, x, targets):
        return self.logits(x), None
"""


def test_nano_gpt(tmp_path):
    """Its checkpoint is evaluated on the whole validation text: here one that knows that b follows a."""
    from benchmarks import shakespeare

    checkout, text = tmp_path / "checkout", tmp_path / "text.txt"
    text.write_text("ab" * 500)
    for name in ("data/shakespeare_char", "out-shakespeare-char"):
        (checkout / name).mkdir(parents=True)
    (checkout / "model.py").write_text(MODEL)
    (checkout / "train.py").write_text("import sys; open('asked', 'w').write(' '.join(sys.argv))")
    (checkout / "data/shakespeare_char/prepare.py").write_text("open('prepared', 'w')")
    saved = {"model_args": {"vocab_size": 2}, "model": {"logits.weight": torch.tensor([[0.0, 100.0], [0.0, 0.0]])}}
    torch.save(saved, checkout / "out-shakespeare-char/ckpt.pt")
    args = Namespace(nanogpt=checkout, data=str(text), steps=3)
    copy, losses = shakespeare.prepared(args, tmp_path), {shakespeare.NANOGPT: []}
    assert (copy / "data/shakespeare_char/input.txt").read_text() == text.read_text()
    assert shakespeare.nanogpt(copy, args, losses, 0) > 0
    assert "config/train_shakespeare_char.py --device=cpu" in (copy / "asked").read_text()
    assert (copy / "prepared").exists()
    assert losses[shakespeare.NANOGPT] == [pytest.approx(torch.tensor(2.0).log().item() / 2, abs=0.01)]


# end
