"""`--fix`: a change is tried by real trainings, kept only if it helps, and nothing half is ever left."""

import json
import os
import re
import time

import pytest
import yaml
from conftest import SMALL

from src.config.request import read_request
from src.diagnose import diagnose_parser
from src.diagnosis.examine import Examination
from src.diagnosis.finding import BADLY, SLOW, SPACE, Finding
from src.diagnosis.fix import fix
from src.diagnosis.subject import ConfigSubject
from src.diagnosis.trials import Scale, Trials
from src.tuning import search

FOUND = {"command": "python -m src.diagnose --config tests/small.yaml --fix", "made": {"host": "here", "torch": "2"}}
LOW = "model: {init_args: {optimizer: {init_args: {lr: 1.0e-5}}, network: {init_args: {dropout: 0.0}}}}\n"
FASTER = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 0.005}}}}}
NOTHING = {"trainer": {"log_every_n_steps": 10}}
WHOLE = {"data": {"init_args": {"micro_batch_size": 64}}}
TOO_LOW = Finding("lr_too_low", BADLY, "the learning rate is too low", change=FASTER, gain=0.5)


@pytest.fixture
def low(tmp_path):
    (tmp_path / "low.yaml").write_text(LOW)
    (tmp_path / "out").mkdir()
    return [*SMALL, "--config", tmp_path / "low.yaml", "--run_dir", tmp_path / "out"]


def mend(*findings: Finding, minutes: float = 1.0):
    """A command: --fix after an examination that has found this."""

    def command(args) -> None:
        search.BLOCK_SEC, search.PAIRS_AT_LAST = 0.05, 6
        request = read_request(diagnose_parser(), [*args, "--minutes", str(minutes)])
        folder = search.Path(request.options.run_dir)
        examination = Examination(ConfigSubject(request), folder, 60)
        examination.trials = Trials(examination.runner, Scale("val/loss", "min", 2.3), 20)
        examination.total, examination.result.findings = 60.0, list(findings)
        print(fix(examination, request, folder, FOUND))

    return command


def test_what_helps_is_written_with_its_receipt(run, low, tmp_path):
    other = Finding("leakage", BADLY, "val is in train", todo="split it anew")
    output = run(low, command=mend(other, TOO_LOW))
    assert "the learning rate is too low: the change helped (" in output
    text, receipt = (tmp_path / "out/fixed.yaml").read_text(), json.loads((tmp_path / "out/receipt.json").read_text())
    assert yaml.safe_load(text) == FASTER == receipt["change"]
    head = [line.removeprefix("# ") for line in text.splitlines()[1:] if line.startswith("#")]
    assert yaml.safe_load("\n".join(head)) == receipt
    assert text.startswith("# the learning rate is too low\n# kept: true\n")
    assert (receipt["steps"], receipt["seeds"]) == (40, [10, 11, 12, 13, 14])
    assert max(receipt["after"]) < 0.8 * min(receipt["before"])
    assert len(receipt["after"]) == len(receipt["before"]) == 5
    assert (receipt["command"], receipt["host"], receipt["torch"]) == (FOUND["command"], "here", "2")
    assert len({*receipt["before"]}) == 5  # seeds of their own
    run([*low[:4], "--config", tmp_path / "out/fixed.yaml", "--trainer.max_steps", "2", "--run_dir", tmp_path / "run"])


def test_what_does_not_help_is_not_written(run, low, tmp_path):
    output = run(low, command=mend(Finding("logs", BADLY, "it logs too seldom", change=NOTHING, certain=True)))
    assert "it logs too seldom: the change did not help beyond noise (" in output
    assert output.rstrip().endswith("nothing is written")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"probes.log"}


def test_without_a_key_there_is_nothing_to_fix(run, low):
    assert run(low, command=mend(Finding("leakage", BADLY, "val is in train"))) == (
        "nothing to fix: there is no finding that a key mends\n"
    )


@pytest.mark.parametrize(("change", "kept"), [(WHOLE, True), (NOTHING, False)])
def test_what_is_slow_is_timed_in_turn(change, kept, run, low, tmp_path):
    (tmp_path / "low.yaml").write_text("data: {init_args: {micro_batch_size: 4}}\n")
    output = run(low, command=mend(Finding("micro_batch_too_small", SLOW, "16 micro-batches", change=change)))
    assert (tmp_path / "out/fixed.yaml").exists() == kept, output
    assert re.search("helped [(]why below" if kept else "not help beyond noise [(]why (no gain|slower)", output)
    if kept:
        receipt = json.loads((tmp_path / "out/receipt.json").read_text())
        assert receipt["ratio"] < 0.7
        assert receipt["step_sec"][1] < receipt["step_sec"][0]
        assert receipt["after"] == pytest.approx(receipt["before"], rel=0.05)


@pytest.mark.parametrize(("widths", "kept"), [([8, 8], True), ([90_000, 90_000], False)])
def test_what_does_not_fit_is_planned(widths, kept, run, low, tmp_path):
    (tmp_path / "low.yaml").write_text("model: {init_args: {network: {init_args: {widths: [100000, 100000]}}}}\n")
    change = {"model": {"init_args": {"network": {"init_args": {"widths": widths}}}}}
    output = run(low, command=mend(Finding("out_of_memory", SPACE, "it is too large", change=change)))
    assert ("helped (needs_gib [1" if kept else "did not help beyond noise (needs_gib [1") in output
    assert (tmp_path / "out/fixed.yaml").exists() == kept


def test_without_time_nothing_is_kept(run, low, tmp_path):
    output = run(low, command=mend(TOO_LOW, minutes=0.0001))
    assert "did not help beyond noise" in output
    assert not (tmp_path / "out/fixed.yaml").exists()


@pytest.mark.parametrize("when", [0.5, 2.0, "receipt.json"])
def test_killed_at_any_time_it_leaves_no_half_file(when, start, low, tmp_path):
    child = start(low, command=mend(TOO_LOW))
    if isinstance(when, float):
        time.sleep(when)
    else:
        child.wait_for(tmp_path / "out" / when)
    os.kill(child.pid, 9)
    child.wait()
    child.wait_for_all()  # the trainings end with it
    for name, read in (("receipt.json", json.loads), ("fixed.yaml", yaml.safe_load)):
        file = tmp_path / "out" / name
        assert not file.exists() or FASTER in (read(text := file.read_text()), read(text).get("change"))


@pytest.mark.parametrize(("before", "after", "kept"), [(1, 20, True), (20, 19, False)])
def test_how_often_it_validates_is_judged_by_a_whole_run(before, after, kept, run, low, tmp_path):
    (tmp_path / "low.yaml").write_text(f"trainer: {{val_check_interval: {before}, max_epochs: 100}}\n")
    change = {"trainer": {"val_check_interval": after}}
    output = run(low, command=mend(Finding("validation_too_often", SLOW, "it validates often", change=change)))
    assert (tmp_path / "out/fixed.yaml").exists() == kept, output
    first, second = map(float, re.search(r"run_sec \[([\d.]+), ([\d.]+)\]", output).groups())
    assert (second < 0.8 * first) == kept
