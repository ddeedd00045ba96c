"""Every experiment that is shipped trains under the preset, on two processes."""

import json

import pytest
from conftest import ROOT
from test_experiments import cifar10, data_flags  # noqa: F401

PRESET = [
    "--config",
    "configs/trainer/smoke.yaml",
    "--config",
    "configs/trainer/fsdp.yaml",
    "--pictures.enabled",
    "false",
]
PRESET += ["--trainer.accelerator", "cpu", "--trainer.devices", 2]


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_trains_divided(path, run, tmp_path, request):
    flags = ["--config", path, *PRESET, "--run_dir", tmp_path / "run", "--ema.decay", "null"]
    if "cifar10" in path.stem:
        flags += ["--data.data_dir", request.getfixturevalue("cifar10"), "--data.batch_size", 128]
    else:
        flags += data_flags(path)
    run(flags, twins=1)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 3)
