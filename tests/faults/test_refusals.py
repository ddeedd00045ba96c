"""What Lightning refuses is one line, and leaves nothing behind; what may be a bug keeps its traceback."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from harness import EVERY_STEP, SELDOM, TINY

from src.models.classification import Classification

CALLBACK = "[{class_path: lightning.pytorch.callbacks.%s, init_args: {%s}}]"
SHARDED = "{class_path: lightning.pytorch.strategies.ModelParallelStrategy}"
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trainer.val_check_interval", 50], "`val_check_interval` (50) must be less than or equal to"),
        (
            [*TWO, "--trainer.strategy", SHARDED],
            "trainer.strategy: ModelParallelStrategy writes checkpoints in its own",
        ),
        (
            [
                *["--data.micro_batch_size", 16, "--trainer.callbacks"],
                CALLBACK % ("GradientAccumulationScheduler", "scheduling: {0: 2}"),
            ],
            "trainer.callbacks: GradientAccumulationScheduler -> use data.micro_batch_size instead",
        ),
        (["--trainer.limit_val_batches", 0.01], "trainer: You requested to check 0.01 of the `val_dataloader` but"),
        (["--trainer.callbacks", CALLBACK % ("LearningRateMonitor", "")], None),
    ],
    ids=["val_check_interval", "sharded", "a callback", "limit_val_batches", "an innocent callback"],
)
def test_a_setting_that_is_refused_when_training_begins(run, tmp_path, flags, said):
    folder = tmp_path / "logs/run"
    if said is None:
        run([*TINY, *flags, "--run_dir", folder])
        return
    output = run([*TINY, *flags, "--run_dir", folder], code=2)
    (line,) = (line for line in output.splitlines() if "rror" in line)
    assert line.startswith("error: ")
    assert said in line
    assert "Traceback" not in output
    assert not folder.exists()


def test_a_metric_that_a_callback_lacks_is_refused_before_training(run, tmp_path):
    callback = CALLBACK % ("EarlyStopping", "monitor: val/los")
    output = run([*TINY, "--trainer.callbacks", callback, "--run_dir", tmp_path / "run"], code=2)
    line = "error: trainer.callbacks: EarlyStopping: no metric val/los; did you mean val/loss?"
    assert output.splitlines()[-1] == line
    assert not (tmp_path / "run").exists()


def test_a_metric_that_a_callback_lacks_is_a_wrong_config_also_after_an_epoch(run, tmp_path):
    callback = CALLBACK % ("EarlyStopping", "monitor: val/los")
    flags = ["--trainer.num_sanity_val_steps", 0, "--trainer.callbacks", callback]
    output = run([*TINY, *flags, "--run_dir", tmp_path / "run"], code=2)
    assert "`val/los` which is not available" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 2


def in_training_step(act, step=0):
    """A hook: do something wrong in a training step."""

    def first():
        training_step = Classification.training_step

        def wrong(self, batch, batch_idx):
            if self.trainer.global_step >= step:
                return act(self)
            return training_step(self, batch, batch_idx)

        Classification.training_step = wrong

    return first


def raise_value_error(module):
    raise ValueError("mine")


BUGS = {
    "an error in code": raise_value_error,
    "a metric that is text": lambda module: module.log("train/x", "text"),
    "a loss that is text": lambda module: "text",
    "a wrong call": lambda module: module.trainer.save_checkpoint(),
}


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("name", BUGS)
def test_a_bug_keeps_its_traceback(run, tmp_path, name, step):
    output = run([*TINY, "--run_dir", tmp_path / "run"], code=1, first=in_training_step(BUGS[name], step))
    assert "Traceback" in output
    assert (tmp_path / "run/summary.json").exists()


def test_an_address_that_is_in_use_is_the_machines_fault(run, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
        args = [*TINY, *TWO, "--trainer.strategy", "ddp", "--run_dir", tmp_path / "run"]
        output = run(args, code=75, first=lambda: os.environ.update(address), twins=1)
    assert "error: the processes cannot reach each other: " in output
    assert "Traceback" not in output


def test_a_refused_start_leaves_nothing_also_under_logs(run, tmp_path):
    def logs_elsewhere():
        from src.run import folder

        folder.LOGS = tmp_path / "logs"

    refused = [*TINY, "--trainer.val_check_interval", 50]
    run(refused, code=2, first=logs_elsewhere)
    assert not list((tmp_path / "logs").rglob("*"))


def test_a_start_that_is_refused_in_a_folder_with_other_things_leaves_them(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    run([*TINY, "--trainer.val_check_interval", 50, "--run_dir", tmp_path / "run"], code=2)
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_a_run_that_has_trained_is_kept_when_going_on_is_refused(run, tmp_path):
    args = [*TINY, *EVERY_STEP, "--run_dir", tmp_path / "run"]
    run(args, code=1, first=in_training_step(raise_value_error, 3))
    run(args, code=2, first=refusing_strategy)
    run(args)


def refusing_strategy():
    from src.run import checkpoint
    from src.run.errors import ConfigError

    def refuse(strategy):
        raise ConfigError("no")

    checkpoint.check_strategy = refuse


def test_more_epochs_for_a_finished_run_are_had_by_the_flags_that_are_named(run, tmp_path):
    args = [*TINY, *SELDOM, "--model.schedule", "null"]
    run([*args, "--run_dir", tmp_path / "run"])
    longer = [*args, "--trainer.max_epochs", 5]
    output = run([*longer, "--run_dir", tmp_path / "run"], code=2)
    assert "trainer.max_epochs was 3, now 5" in output
    flags = re.search(r"the same command with (--resume \S+ --run_dir \S+)$", output.strip())[1].split()
    assert "going on after 12 steps" in run([*longer, *flags])
    assert json.loads((Path(flags[-1]) / "summary.json").read_text())["steps"] == 20
    output = run([*longer, "--model.network.widths", "[8]", "--run_dir", tmp_path / "run"], code=2)
    assert "--resume" not in output  # its weights would not fit
