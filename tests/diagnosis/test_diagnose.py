"""The command: what it writes, what it refuses, and that it can be taken out."""

import json
import re
import shlex
import subprocess

import pytest
import yaml
from conftest import ROOT, SMALL
from loggers.test_wandb import alone, exit_codes, history, records, summary  # noqa: F401

import src.diagnose
import src.train


@pytest.fixture(autouse=True)
def without_wandb(alone, monkeypatch):  # noqa: F811
    """But in the tests of W&B."""
    monkeypatch.setenv("WANDB_MODE", "disabled")


def asked(run, *args, **how) -> str:
    return run([*args, "--minutes", "0.4"], command=src.diagnose.main, **how)


def test_a_config_before_training(run, tmp_path):
    output = asked(run, *SMALL, "--run_dir", tmp_path / "out", "--json", tmp_path / "new/found.json")
    found = json.loads((tmp_path / "out/diagnose.json").read_text())
    assert found == json.loads((tmp_path / "new/found.json").read_text())
    assert found["verdict"] in ("healthy", "findings", "unknown")
    assert found["command"].startswith("python -m src.diagnose --config tests/small.yaml --run_dir")
    assert found["made"]["torch"]
    assert f"asked     {found['command']}\n" in output
    assert "Diagnosis: small" in (tmp_path / "out/diagnose.html").read_text()
    assert not (tmp_path / "out/wandb").exists()


def test_a_run_is_examined_in_its_own_folder(run, copied, tmp_path):
    folder = copied([*SMALL, "--trainer.max_epochs", 1])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    asked(run, "--run_dir", folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.parent.name for path in folder.rglob("*") if path.is_file() and path not in before} == {"diagnose"}
    found = json.loads((folder / "diagnose/diagnose.json").read_text())
    for one in found["findings"]:
        assert not one["command"] or shlex.split(one["command"])[4].endswith("run/config.yaml")


def test_the_record_of_a_run_is_read(run, copied):
    folder = copied([*SMALL, "--trainer.max_epochs", 1])
    ended = json.loads((folder / "summary.json").read_text())
    stopped = {"status": "stopped", "exit_code": 130, "error": "stopped by SIGINT", "steps": ended["steps"]}
    (folder / "summary.json").write_text(json.dumps(stopped))
    assert "SIGINT" in asked(run, "--run_dir", folder)
    checks = [one["check"] for one in json.loads((folder / "diagnose/diagnose.json").read_text())["findings"]]
    assert "not_finished" in checks


def test_a_config_that_does_not_build_is_a_finding_of_its_own(run, tmp_path):
    output = asked(run, *SMALL, "--run_dir", tmp_path / "out", "--data.batch_size", "100000", "--fix")
    (one,) = json.loads((tmp_path / "out/diagnose.json").read_text())["findings"]
    assert (one["check"], one["text"]) == ("does_not_train", "train has 1293 samples, fewer than one batch")
    assert one["todo"] == "lower data.batch_size from 100000"
    assert "1         does badly: train has 1293 samples, fewer than one batch\n" in output
    assert output.rstrip().endswith("fix       nothing to fix: there is no finding that a key mends")
    assert "Traceback" not in output


def test_callbacks_that_log_are_trained_with(run, tmp_path):
    place = "lightning.pytorch.callbacks.LearningRateMonitor"
    (tmp_path / "more.yaml").write_text(f"trainer: {{callbacks: [{{class_path: {place}}}]}}\n")
    asked(run, *SMALL, "--config", tmp_path / "more.yaml", "--run_dir", tmp_path / "out")
    found = json.loads((tmp_path / "out/diagnose.json").read_text())
    assert "does_not_train" not in [one["check"] for one in found["findings"]]
    assert found["trainings"] > 0


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ("--config tests/small.yaml --minutes 0", 2, "--minutes: invalid positive number value: '0'"),
        ("--config tests/small.yaml --model.network.width 3", 2, "did you mean widths?"),
        ("--config tests/nothing.yaml", 2, "tests/nothing.yaml"),
        ("--run_dir {tmp}/nothing", 4, "no run is here (there is no config.yaml)"),
        ("--run_dir {tmp}/damaged", 4, "config.yaml: damaged"),
        ("--run_dir {tmp}/odd", 2, "did you mean model?"),
        ("--config tests/small.yaml --run_dir {tmp}/odd", 2, "odd/config.yaml: where results would go -> another"),
        ("--config tests/small.yaml --config {tmp}/out/fix-1.yaml --run_dir {tmp}/out", 2, "fix-1.yaml: where results"),
        ("--config tests/small.yaml --run_dir /proc/nothing", 75, "/proc/nothing: cannot be written: No such file"),
        ("--config tests/small.yaml --run_dir {tmp}/odd/config.yaml/out", 75, "cannot be written: Not a directory"),
        ("--config tests/small.yaml --json {tmp}/odd", 2, "odd: is a folder -> name a file in it"),
        ("--config tests/small.yaml --json /proc/no/x.json", 75, "cannot be written: No such file"),
        ("--run {tmp}/nothing", 4, "no run is here (there is no config.yaml)"),
    ],
)  # fmt: skip
def test_what_is_wrong_ends_it_in_one_line(args, code, text, run, tmp_path):
    for name, config in {"damaged": "model: [", "odd": "modle: {}\n", "out": "threads: 1\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ("fix-1.yaml" if name == "out" else "config.yaml")).write_text(config)
    output = run(args.format(tmp=tmp_path).split(), code=code, command=src.diagnose.main)
    assert text in output
    assert len(output.splitlines()) == 1
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert files == {"damaged/config.yaml", "odd/config.yaml", "out/fix-1.yaml", "output0.txt"}


def test_print_config_examines_nothing(run, tmp_path):
    output = asked(run, *SMALL, "--print_config", "--run_dir", tmp_path / "out")
    assert yaml.safe_load(output)["trainer"]["max_epochs"] == 3
    assert not (tmp_path / "out").exists()


def test_in_wandb_a_run_goes_on_with_its_own_record(run, copied, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = copied([*SMALL, "--trainer.max_epochs", 1, "--wandb.mode", "offline"])
    assert (folder / "wandb").is_dir()
    before = len(history(folder))
    asked(run, "--run_dir", folder, "--data.batch_size", "100000")  # of which there is a finding
    told, rows = summary(folder), history(folder)[before:]
    assert told["diagnosis"] == "findings"
    (table,) = [row for row in rows if "diagnosis/findings._type" in row]
    assert (table["diagnosis/findings._type"], table["diagnosis/findings.nrows"]) == ("table-file", 1)
    assert table["trainer/global_step"] == json.loads((folder / "summary.json").read_text())["steps"]
    (file,) = folder.glob("wandb/offline-run-*/files/media/table/diagnosis/*.json")
    assert "fewer than one batch" in file.read_text()
    assert exit_codes(folder) == [0, 0]
    ids = {record.run.run_id for record in records(folder) if record.WhichOneof("record_type") == "run"}
    assert ids == {json.loads((folder / "run.json").read_text())["wandb_id"]}


def test_in_wandb_a_config_has_a_record_with_pictures(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    from src.diagnosis import report

    told = {"verdict": "findings", "findings": [dict.fromkeys(report.COLUMNS, "x") | {"gain": 0.5}]}

    def command(args) -> None:
        from src.diagnosis.pictures import pictures

        rates = {"rates": [1e-3, 1e-2], "losses": [2.0, 1.0], "config": 1e-3}
        report.record(told, pictures({"rates": rates}), tmp_path, {"wandb": {"project": "p"}})

    assert "W&B: recorded offline" in run([], command=command)
    assert summary(tmp_path)["diagnosis"] == "findings"
    (names,) = [row[name] for row in history(tmp_path) for name in row if name == "diagnosis/learning rates.filenames"]
    (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{names[0]}")
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_a_record_in_wandb_gets_none(run, copied, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = copied([*SMALL, "--trainer.max_epochs", 1, "--wandb.mode", "disabled"])
    asked(run, "--run_dir", folder, "--data.batch_size", "100000")
    assert not list(folder.rglob("wandb"))


def test_it_is_a_room_that_can_be_taken_out():
    """Nothing else in src names it; docs/add.md says what to delete."""
    command = ["git", "grep", "-lE", r"diagnos(is|e)\b", "--", "src"]
    naming = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert "src/diagnose.py" in naming
    assert [name for name in naming if not name.startswith(("src/diagnosis/", "src/diagnose.py"))] == []
    section = (ROOT / "docs/add.md").read_text().partition("\n## Leave out `diagnose`\n")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w./]+)`", section)
    assert {"src/diagnose.py", "src/diagnosis/", "tests/diagnosis/", "docs/diagnose.md"} <= set(named)
    assert [name for name in named if "/" in name and not (ROOT / name).exists()] == []


def test_the_page_names_the_checks_that_there_are():
    page = (ROOT / "docs/diagnose.md").read_text().split("## What is checked")[1].split("## ")[0]
    named = {
        name
        for row in page.splitlines()[4:]
        for name in re.findall(r"`(\w+)`", row.split("|")[1:2][0] if "|" in row else "")
    }
    code = "\n".join(path.read_text() for path in (ROOT / "src/diagnosis").glob("*.py"))
    made = re.findall(r'(?:Finding\(|yield |, )"([a-z]+(?:_[a-z]+)+)"', code)
    assert {
        name
        for name in named
        if not re.search(
            rf"\b{name.removesuffix('_too_often').removesuffix('_too_strong').removeprefix('lr_too_')}", code
        )
    } == set()
    checks = {name for name in made if re.search(rf'(?:Finding\(|yield )"{name}"', code)}
    assert checks - named == set()
