"""Two processes on this machine, with gloo, do what one does.

Most are forked (`twins=1`), but one run of each launcher is made as users make it.
"""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL

from src.models.classification import Classification

# No dropout and no batch norm, which see each device's samples apart.
TINY = [*SMALL, "--model.network.dropout", "0", "--model.network.widths", "[32]"]
TINY += ["--trainer.accelerator", "cpu", "--pictures.enabled", "false", "--trainer.log_every_n_steps", "5"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


def train(args: list[str], launcher: tuple[str, ...] = ("-m",)) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *launcher, "src.train", *map(str, args)], cwd=ROOT, env=ENV)


def ending(folder: Path) -> tuple[dict, list[float], dict]:
    summary = json.loads((folder / "summary.json").read_text())
    with open(folder / "metrics.csv") as f:
        losses = [float(row["val/loss"]) for row in csv.DictReader(f) if row["val/loss"]]
    return summary, losses, torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_same(one: Path, other: Path, rel: float) -> None:
    (a, a_losses, a_weights), (b, b_losses, b_weights) = ending(one), ending(other)
    assert a["steps"] == b["steps"] > 0
    assert a["test/loss"] == pytest.approx(b["test/loss"], rel=rel)
    assert [a[f"test/{name}"] for name in ("acc", "f1", "auroc")] == pytest.approx(
        [b[f"test/{name}"] for name in ("acc", "f1", "auroc")], abs=0.003
    )
    assert a_losses == pytest.approx(b_losses, rel=rel)
    assert all(torch.allclose(a_weights[name], b_weights[name], rtol=100 * rel, atol=100 * rel) for name in a_weights)


def test_two_processes_give_what_one_gives(run, tmp_path):
    flags = [*TINY, "--trainer.max_epochs", 2]
    run([*flags, "--run_dir", tmp_path / "one"])
    assert train([*flags, *DDP, "--run_dir", tmp_path / "two"]).wait() == 0
    assert_same(tmp_path / "one", tmp_path / "two", rel=1e-4)


KINDS = {
    # kind: images
    "images": ["--config", "configs/experiment/digits_mlp.yaml", "--model.network.dropout", 0],
    # end
    # kind: text
    "text": [
        *("--config", "configs/experiment/text_gpt.yaml", "--data.seq_len", 50, "--data.batch_size", 126),
        *("--model.network.dim", 32, "--model.network.num_heads", 2, "--trainer.max_steps", 4),
        *("--trainer.limit_train_batches", 4, "--trainer.val_check_interval", 1.0),
        *("--trainer.check_val_every_n_epoch", 1),
    ],
    # end
    # kind: tables
    "table": ["--config", "configs/experiment/diabetes_mlp.yaml", "--model.network.dropout", 0],
    # end
    # kind: series
    "series": ["--config", "configs/experiment/seasons_linear.yaml", "--trainer.limit_train_batches", 20],
    # end
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_measure_what_one_does(run, tmp_path, kind):
    """Of splits whose sizes are odd, so that there is padding."""
    flags = [*KINDS[kind], "--trainer.accelerator", "cpu", "--trainer.max_epochs", 1, "--pictures.enabled", "false"]
    run([*flags, "--run_dir", tmp_path / "one"])
    run([*flags, *DDP, "--run_dir", tmp_path / "two"], twins=1)
    one, two = (ending(tmp_path / name)[0] for name in ("one", "two"))
    names = [name for name in one if name.startswith("test/")]
    assert len(names) >= 3
    assert [one[name] for name in names] == pytest.approx([two[name] for name in names], rel=1e-3)


def torchrun(*flags: str) -> tuple[str, ...]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), *flags)


@pytest.mark.long
def test_under_torchrun(run, tmp_path):
    flags = [*TINY, "--trainer.max_epochs", 2]
    launcher = (*torchrun(), "-m")
    assert train([*flags, *DDP, "--run_dir", tmp_path / "two"], launcher).wait() == 0
    run([*flags, "--run_dir", tmp_path / "one"])
    assert_same(tmp_path / "one", tmp_path / "two", rel=1e-4)


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_two_processes_go_on_bit_for_bit(start, run, tmp_path, signum):
    flags = [*TINY, *DDP, "--trainer.max_epochs", 15, "--checkpoints.every_n_steps", 7]
    run([*flags, "--run_dir", tmp_path / "whole"], twins=1)
    child = start([*flags, "--run_dir", tmp_path / "cut"], twins=1)
    while not list((tmp_path / "cut").glob("checkpoints/step-*7.ckpt")):
        assert child.group_is_there()
        time.sleep(0.01)
    child.kill(signum)
    assert child.wait() == (143 if signum == signal.SIGTERM else -9)
    child.wait_for_all()
    run([*flags, "--run_dir", tmp_path / "cut"], twins=1)
    (_, losses, weights), (_, other_losses, other_weights) = (ending(tmp_path / name) for name in ("whole", "cut"))
    assert losses == other_losses
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_a_run_goes_on_with_fewer_processes(start, run, tmp_path):
    flags = [*TINY, "--trainer.max_epochs", 4, "--checkpoints.every_n_steps", 7]
    run([*flags, "--run_dir", tmp_path / "whole"])
    child = start([*flags, *DDP, "--run_dir", tmp_path / "cut"], twins=1)
    while not list((tmp_path / "cut").glob("checkpoints/step-*7.ckpt")):
        assert child.group_is_there()
        time.sleep(0.01)
    child.kill(signal.SIGKILL)
    assert child.wait() == -9
    child.wait_for_all()
    output = run([*flags, "--run_dir", tmp_path / "cut"])
    assert (
        "Other devices than before: trainer.devices was 2, now 'auto', trainer.strategy was 'ddp', now 'auto'" in output
    )
    assert ", going on after " in output
    assert_same(tmp_path / "whole", tmp_path / "cut", rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused(run, tmp_path):
    output = run([*TINY, *DDP, "--data.batch_size", "63", "--run_dir", tmp_path / "run"], code=2)
    assert "data.batch_size: 63 over 2 devices -> take one of [62, 64]" in output


def fails_on(rank, act):
    """A hook: act in the sixth step of one of the processes."""

    def first():
        step = Classification.training_step

        def failing(self, batch, batch_idx):
            if self.trainer.global_step == 5 and os.environ.get("LOCAL_RANK", "0") == str(rank):
                act()
            return step(self, batch, batch_idx)

        Classification.training_step = failing

    return first


def no_space():
    raise OSError(28, "No space left on device")


def die():
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(
    ("rank", "act", "code", "said"),
    [
        (0, no_space, 75, "No space left on device"),
        (1, no_space, 75, "another process of this run has failed: rank 1"),
        (1, die, 75, "another process of this run was killed: rank 1"),
    ],
)
def test_one_process_that_fails_ends_all_soon_and_its_error_is_told(start, tmp_path, rank, act, code, said):
    child = start([*TINY, *DDP, "--run_dir", tmp_path / "run"], first=fails_on(rank, act), twins=1)
    assert child.wait(60) == code, child.output
    assert said in child.output
    assert "No space" in child.output or "was killed" in child.output
    assert "Traceback" not in child.output
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == code
    child.wait_for_all()


LINE = "error: another process of this run was killed: rank {} -> the same command goes on"


def test_the_process_that_is_left_names_the_first_if_that_was_killed(start, tmp_path):
    child = start([*TINY, *DDP, "--run_dir", tmp_path / "run"], first=fails_on(0, die), twins=1)
    assert child.wait() == -9
    child.wait_for_all()
    assert [text for text in child.output.splitlines() if "rror" in text] == [LINE.format(0)]
    assert "Traceback" not in child.output


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_distributed import die, fails_on
from src.train import main
fails_on(1, die)()
sys.exit(main())
"""


def test_the_process_that_is_left_names_the_one_that_was_killed_under_torchrun(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    log = tmp_path / "logs"
    own = torchrun("--redirects", "3", "--log-dir", str(log))
    command = [sys.executable, *own, script, *TINY, *DDP, "--run_dir", tmp_path / "run"]
    with open(tmp_path / "output", "w") as f:
        subprocess.run(list(map(str, command)), cwd=ROOT, env=ENV, stdout=f, stderr=f, timeout=90)
    end = time.monotonic() + 15
    while subprocess.run(["pgrep", "-f", str(script)], capture_output=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.1)
    text = next(log.rglob("0/stderr.log")).read_text()
    assert [line for line in text.splitlines() if "rror" in line] == [LINE.format(1)]
    assert "Traceback" not in text
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 75
