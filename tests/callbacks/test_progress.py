import pty
import re

import torch
from conftest import SMALL

from src.run.device import has_bfloat16


def test_without_a_terminal_there_are_lines_only(run, tmp_path):
    output = run([*SMALL, "--progress.line_sec", "0", "--run_dir", tmp_path / "run"])
    assert "\x1b" not in output
    assert re.search(r"^network +MLP, 2,\d+ parameters$", output, re.MULTILINE)
    assert re.search(r"^data +train 1,293, val 144, test 360 samples$", output, re.MULTILINE)
    assert re.search(r"^steps +60 of 64 samples in 3 epochs$", output, re.MULTILINE)
    assert re.search(r"^compute +5,440 FLOP a sample forward, [\d.]+ [MG]FLOP in all$", output, re.MULTILINE)
    assert re.search(r"^device +1 x cpu, 1 threads, precision 32-true$", output, re.MULTILINE)
    lines = re.findall(r"^epoch (\d) +step (\d+) .*train/loss [\d.]+ .*val/acc [\d.]+", output, re.MULTILINE)
    assert lines == [("1", "20"), ("2", "40"), ("3", "60")]


def test_the_precision_is_the_fastest_that_the_processor_has(run, tmp_path):
    """The run's config names it, and one that has to be emulated is refused."""
    able = has_bfloat16(torch.device("cpu"))
    output = run([*SMALL, "--trainer.precision", "auto", "--run_dir", tmp_path / "auto"])
    precision = "bf16-mixed" if able else "32-true"
    assert re.search(rf"^device .*, precision {precision}$", output, re.MULTILINE)
    assert f"precision: {precision}\n" in (tmp_path / "auto/config.yaml").read_text()
    output = run([*SMALL, "--trainer.precision", "bf16-mixed", "--run_dir", tmp_path / "bf16"], code=0 if able else 2)
    refused = "error: trainer.precision: bf16-mixed, which this cpu has to emulate, many times slower -> take auto"
    assert (refused in output) != able


def test_the_time_that_is_left_is_told_again_and_again(run, tmp_path):
    flags = ["--progress.line_sec", "0", "--trainer.max_epochs", "40", "--run_dir", tmp_path / "run"]
    output = run([*SMALL, *flags])
    lines = [line for line in output.splitlines() if line.startswith("epoch ")]
    known = [bool(re.search(r"  about .* more, until \w\w\w \d\d:\d\d$", line)) for line in lines]
    assert len(lines) >= 40
    assert known == [True] * (len(lines) - 1) + [False]  # the last one is the end


def test_lines_are_far_apart_and_the_last_is_there(run, tmp_path):
    output = run([*SMALL, "--progress.line_sec", "1000", "--run_dir", tmp_path / "run"])
    assert re.findall(r"^epoch (\d) .* val/loss", output, re.MULTILINE) == ["1", "3"]


def test_the_first_loss_is_told_when_it_is_logged(run, tmp_path):
    """Without a terminal and without a validation; then there is a line each minute."""
    flags = ["--trainer.log_every_n_steps", "5", "--run_dir", tmp_path / "run"]
    lines = [line for line in run([*SMALL, *flags]).splitlines() if line.startswith("epoch 1 ")]
    assert re.fullmatch(r"epoch 1 +step 6  optim/lr [\d.]+  train/acc [\d.]+  train/loss [\d.]+.*", lines[0])
    assert [line.split()[3] for line in lines] == ["6", "20"]  # and the validation of so short an epoch


def test_a_long_epoch_is_told_without_a_validation(run, tmp_path):
    flags = ["--trainer.log_every_n_steps", "5", "--progress.train_line_sec", "0", "--progress.line_sec", "1000"]
    output = run([*SMALL, *flags, "--run_dir", tmp_path / "run"])
    lines = re.findall(r"^epoch 1 +step (\d+) +optim/lr [\d.]+ .*train/loss ([\d.]+)", output, re.MULTILINE)
    assert [int(step) for step, _ in lines][:3] == [6, 7, 8]  # a step's figures are there at the next one
    assert "val/" not in output[output.index("step 6 ") : output.index("step 8 ")]


def test_a_terminal_gets_a_bar_that_is_drawn_seldom(start, tmp_path):
    ours, theirs = pty.openpty()

    def attach() -> None:
        import os
        import sys

        os.dup2(theirs, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115

    child = start([*SMALL, "--progress.refresh_sec", "0.5", "--run_dir", tmp_path / "run"], first=attach)
    import os

    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown += piece
        if not piece:
            break
    assert child.wait() == 0, child.output
    text = shown.decode()
    assert "60/60" in text
    assert 1 < text.count("/60") < 30


def test_no_progress_at_all(run, tmp_path):
    output = run([*SMALL, "--trainer.enable_progress_bar", "false", "--run_dir", tmp_path / "run"])
    assert "epoch 1" not in output
