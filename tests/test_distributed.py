"""Two processes on this machine, with gloo, do what one does."""

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

# No dropout and no batch norm, which see each device's samples apart.
TINY = [
    *SMALL,
    "--model.network.dropout",
    "0",
    "--model.network.widths",
    "[32]",
]
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


def test_two_processes_give_what_one_gives(tmp_path):
    flags = [*TINY, "--trainer.max_epochs", 2]
    assert train([*flags, "--run_dir", tmp_path / "one"]).wait() == 0
    assert train([*flags, *DDP, "--run_dir", tmp_path / "two"]).wait() == 0
    assert_same(tmp_path / "one", tmp_path / "two", rel=1e-4)


def torchrun(*flags: str) -> tuple[str, ...]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), *flags)


@pytest.mark.long
def test_under_torchrun(tmp_path):
    flags = [*TINY, "--trainer.max_epochs", 2]
    launcher = (*torchrun(), "-m")
    assert train([*flags, *DDP, "--run_dir", tmp_path / "two"], launcher).wait() == 0
    assert train([*flags, "--run_dir", tmp_path / "one"]).wait() == 0
    assert_same(tmp_path / "one", tmp_path / "two", rel=1e-4)


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_two_processes_go_on_bit_for_bit(tmp_path, signum):
    flags = [*TINY, *DDP, "--trainer.max_epochs", 15, "--checkpoints.every_n_steps", 7]
    assert train([*flags, "--run_dir", tmp_path / "whole"]).wait() == 0
    process = train([*flags, "--run_dir", tmp_path / "cut"])
    while not list((tmp_path / "cut").glob("checkpoints/step-*7.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    assert process.wait(timeout=60) == (143 if signum == signal.SIGTERM else -9)
    time.sleep(3)  # the other process notices that the first is gone
    assert train([*flags, "--run_dir", tmp_path / "cut"]).wait() == 0
    (_, losses, weights), (_, other_losses, other_weights) = (ending(tmp_path / name) for name in ("whole", "cut"))
    assert losses == other_losses
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    command = [sys.executable, "-m", "src.train", *TINY, *DDP, "--data.batch_size", "63", "--run_dir", tmp_path / "run"]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 2
    assert "data.batch_size: 63 over 2 devices -> take one of [62, 64]" in done.stderr


FAILS = """
import os, sys
sys.path.insert(0, {root!r})
from src.models.classification import Classification
step = Classification.training_step
def fails(self, batch, i):
    if self.trainer.global_step == 5 and os.environ.get("LOCAL_RANK", "0") == "{rank}":
        {act}
    return step(self, batch, i)
Classification.training_step = fails
from src.train import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("rank", "act", "code", "said"),
    [
        (0, "raise OSError(28, 'No space left on device')", 75, "No space left on device"),
        (1, "raise OSError(28, 'No space left on device')", 75, "another process of this run has failed: rank 1"),
        (1, "os.kill(os.getpid(), 9)", 75, "another process of this run was killed: rank 1"),
    ],
)
def test_one_process_that_fails_ends_all_soon_and_its_error_is_told(tmp_path, rank, act, code, said):
    script = tmp_path / "train.py"
    script.write_text(FAILS.format(root=str(ROOT), rank=rank, act=act))
    command = [sys.executable, script, *TINY, *DDP, "--run_dir", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "No space" in done.stderr or "was killed" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == code
    assert not subprocess.run(["pgrep", "-f", str(script)], capture_output=True, text=True).stdout


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_the_process_that_is_left_names_the_one_that_was_killed(tmp_path, launcher):
    """Lightning's first process, or torchrun's second one, is killed."""
    killed, left = (0, 1) if launcher == "lightning" else (1, 0)
    script = tmp_path / "train.py"
    script.write_text(FAILS.format(root=str(ROOT), rank=killed, act="os.kill(os.getpid(), 9)"))
    log = tmp_path / "logs"
    own = torchrun("--redirects", "3", "--log-dir", str(log)) if launcher == "torchrun" else ()
    command = [sys.executable, *own, script, *TINY, *DDP, "--run_dir", tmp_path / "run"]
    with open(tmp_path / "output", "w") as f:  # which the one that is left still holds when the first has ended
        subprocess.run(list(map(str, command)), cwd=ROOT, env=ENV, stdout=f, stderr=f, timeout=90)
    end = time.monotonic() + 15
    while subprocess.run(["pgrep", "-f", str(script)], capture_output=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.1)
    file = next(log.rglob(f"{left}/stderr.log")) if launcher == "torchrun" else tmp_path / "output"
    line = f"error: another process of this run was killed: rank {killed} -> the same command goes on"
    assert [text for text in file.read_text().splitlines() if "rror" in text] == [line]
    assert "Traceback" not in file.read_text()
    if left == 0:
        assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 75
