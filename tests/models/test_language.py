import json
import math
import signal
import time

import pytest
import torch
from torch.nn import functional as F

from src import evaluate, generate, load_run, predict
from src.data.text.module import TextDataModule

TEXT = (
    "It is a truth universally acknowledged, that a reader in possession of a text must be in want of another.\n" * 99
)
TINY = ["--config", "configs/experiment/text_gpt.yaml", "--data.seq_len", 16, "--data.tokenizer", "characters"]
TINY += [
    "--model.network.dim",
    32,
    "--model.network.depth",
    1,
    "--model.network.num_heads",
    2,
    "--trainer.max_steps",
    40,
]
TINY += ["--trainer.val_check_interval", 10, "--pictures.enabled", "false", "--trainer.log_every_n_steps", 5]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    return [*TINY, "--data.files", f"[{tmp_path / 'a.txt'}]"]


def test_loss_perplexity_and_bits_per_byte(run, text, tmp_path):
    output = run([*text, "--run_dir", tmp_path / "run"])
    assert "-m src.generate --run_dir" in output
    assert "src.predict" not in output
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    model = load_run(tmp_path / "run")
    data = TextDataModule([str(tmp_path / "a.txt")], seq_len=16, cache_dir=str(tmp_path))
    data.setup("fit")
    (row,) = [data.splits["val"].tokens.long()]
    x, targets = row[:-1][: len(row) // 16 * 16].view(-1, 16), row[1:][: len(row) // 16 * 16].view(-1, 16)
    with torch.no_grad():
        losses = F.cross_entropy(model(x).flatten(0, 1), targets.flatten(), reduction="sum")
        rest = row[x.numel() :]
        losses += F.cross_entropy(model(rest[None, :-1])[0], rest[1:], reduction="sum") if len(rest) > 1 else 0
    loss = losses.item() / (len(row) - 1)
    assert summary["test/loss"] == pytest.approx(loss, rel=1e-4)
    assert summary["test/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert summary["test/bpb"] == pytest.approx(loss / math.log(2), rel=1e-4)  # one byte a character
    evaluated = run(["--run_dir", tmp_path / "run", "--split", "val"], command=evaluate.main)
    assert f"val/bpb {summary['test/bpb']:.4f}" in evaluated


def test_a_text_is_continued_the_same_way_each_time(run, text, tmp_path):
    run([*text, "--run_dir", tmp_path / "run"])
    (tmp_path / "a.txt").unlink()  # not needed any more
    flags = ["--run_dir", tmp_path / "run", "--prompt", "It is", "--max_tokens", 30]
    one, again = (run([*flags, "--seed", 1], command=generate.main) for _ in range(2))
    assert one.startswith("It is")
    assert len(one.rstrip("\n")) <= 35
    assert one == again
    assert one != run([*flags, "--seed", 2], command=generate.main)
    greedy = [run([*flags, "--temperature", 0, "--seed", s], command=generate.main) for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_text_of_one_line_is_continued_without_a_prompt(run, text, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT.replace("\n", " "))
    run([*text, "--run_dir", tmp_path / "run"])
    assert len(run(["--run_dir", tmp_path / "run", "--max_tokens", 30], command=generate.main)) == 32


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--prompt", "Ж"], 3, "the characters ['Ж'] were not in the training text"),
        (["--max_tokens", 0], 2, "--max_tokens: 0 is less than 1"),
        (["--temperature", -1], 2, "--temperature: -1.0 is less than 0"),
    ],
)
def test_wrong_requests(run, text, tmp_path, flags, code, message):
    run([*text, "--trainer.max_steps", 2, "--trainer.val_check_interval", 2, "--run_dir", tmp_path / "run"])
    output = run(["--run_dir", tmp_path / "run", *flags], command=generate.main, code=code)
    assert output.startswith("error: ")
    assert message in output
    assert "python -m src.generate" in run(["--run_dir", tmp_path / "run"], command=predict.main, code=2)


def test_a_stopped_run_goes_on_to_the_same_weights(start, run, text, tmp_path):
    long = [*text, "--trainer.max_steps", 120]
    run([*long, "--run_dir", tmp_path / "whole"])
    child = start([*long, "--run_dir", tmp_path / "cut"])
    while not (tmp_path / "cut/metrics.csv").exists():
        time.sleep(0.01)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143, child.output
    run([*long, "--run_dir", tmp_path / "cut"])
    paths = [tmp_path / name / "checkpoints/last.ckpt" for name in ("whole", "cut")]
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


def holed(share, plain):
    """A hook: windows of training lack a share of their targets; `plain` takes torch's own mean over the others."""

    def first():
        from src.data.text.module import Windows
        from src.models.language import LanguageModeling

        fetch = Windows.__getitem__

        def without(self, index):
            batch = fetch(self, index)
            return batch | {
                "targets": batch["targets"].masked_fill(torch.arange(self.seq_len) < share * self.seq_len, -100)
            }

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch["x"]).flatten(0, 1), batch["targets"].flatten())
            self.watch(loss=loss)
            return loss

        Windows.__getitem__ = without
        if plain:
            LanguageModeling.training_step, LanguageModeling.on_after_backward = training_step, lambda self: None

    return first


def test_the_loss_is_the_mean_over_the_targets_that_there_are(run, text, tmp_path):
    flags = [*text, "--trainer.max_steps", 5, "--trainer.log_every_n_steps", 1, "--trainer.val_check_interval", 5]
    for plain in (False, True):
        run([*flags, "--run_dir", tmp_path / f"{plain}"], first=holed(0.75, plain))
    (a, b) = ((tmp_path / f"{plain}/metrics.csv").read_text().splitlines() for plain in (False, True))
    columns = [i for i, name in enumerate(a[0].split(",")) if name in ("train/loss", "optim/grad_norm", "val/loss")]
    assert len(columns) == 3
    for row, other in zip(a[1:], b[1:], strict=True):
        for i in columns:
            x, y = row.split(",")[i], other.split(",")[i]
            assert (x == y == "") or float(x) == pytest.approx(float(y), rel=1e-5)
