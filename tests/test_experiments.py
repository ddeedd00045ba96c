"""Every experiment that is shipped runs, and a few of its steps give the losses on record."""

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

EXPERIMENTS = sorted((ROOT / "configs/experiment").glob("*.yaml"))
GOLDEN = sorted((ROOT / "tests/golden").glob("*.json"))


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory) -> Path:
    """A hundred images of each class, from the archive of real data."""
    folder = tmp_path_factory.mktemp("cifar10")
    archive = Path(os.environ.get("LEYDEN_DATA_DIR", "")) / "cifar10_images.tar.xz"
    if not archive.is_file():
        pytest.skip("needs the real data sets: set LEYDEN_DATA_DIR to their folder")
    subprocess.run(["tar", "xf", archive, "-C", folder, "--wildcards", "*/00[0-9][0-9].jpg"], check=True)
    return folder / "cifar10"


def data_flags(experiment: Path) -> list[str]:
    """Where the experiment's data lies, if the command at its head asks for it."""
    head = experiment.read_text()
    if "--data." not in head:
        return []
    if not os.environ.get("LEYDEN_DATA_DIR"):
        pytest.skip("needs the real data sets: set LEYDEN_DATA_DIR to their folder")
    flag, place = re.search(r"(--data\.(?:data_dir|files?)) (\S+)", head).groups()
    return [flag, re.sub(r"\bdata\b", os.environ["LEYDEN_DATA_DIR"], place, count=1)]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_runs(path, run, tmp_path, request):
    flags = ["--config", path, "--config", "configs/trainer/smoke.yaml", "--run_dir", tmp_path / "run"]
    if "cifar10" in path.stem:
        flags += ["--data.data_dir", request.getfixturevalue("cifar10"), "--data.batch_size", 128]
    else:
        flags += data_flags(path)
    run(flags)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 3


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_losses_are_those_on_record(path, run, tmp_path):
    """20 steps. The tolerance of 1 % leaves room for other processors and versions, not for another computation."""
    flags = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "20", "--trainer.log_every_n_steps", "1"]
    config = ROOT / f"configs/experiment/{path.stem}.yaml"
    run(["--config", config, *flags, "--run_dir", tmp_path / "run", *data_flags(config)])
    with open(tmp_path / "run/metrics.csv") as f:
        losses = [float(row["train/loss"]) for row in csv.DictReader(f) if row["train/loss"]]
    assert losses == pytest.approx(json.loads(Path(path).read_text()), rel=0.01)
