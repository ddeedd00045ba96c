"""Each file in configs/trainer/ does what it says with any experiment: those that a CPU can run are run."""

import csv
import json

import pytest
import torch
from conftest import ROOT, SMALL

from src.config.build import Experiment
from src.config.request import command_parser, read_request
from src.models.classification import Classification

PRESETS = sorted((ROOT / "configs/trainer").glob("*.yaml"))
GPU = torch.accelerator.is_available()
RUN = {  # preset -> more flags, twins, steps
    "cpu": ([], 0, 60),
    "ddp": (["--trainer.accelerator", "cpu", "--trainer.devices", 2], 1, 60),
    "smoke": ([], 0, 3),
    "overfit": (["--trainer.max_epochs", 50], 0, 50),
    "profile": ([], 0, 20),
    "deterministic": ([], 0, 60),
}
REFUSED = {
    "gpu": "error: trainer.accelerator: no gpu is here that torch can use -> take cpu or auto",
    "mps": "error: trainer.accelerator: no mps is here that torch can use -> take cpu or auto",
    "tpu": "error: trainer.accelerator: no tpu is here that torch can use (torch_xla's newest, 2.9, is too old",
    "multi_node": "trainer.num_nodes: 2, but this process was started alone -> start by torchrun",
}


def test_all_presets_are_tested():
    assert {path.stem for path in PRESETS} - {"fsdp"} == {*RUN, *REFUSED}


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets_are_short_and_say_what_they_are(path):
    head, *lines = path.read_text().splitlines()
    settings = [line for line in lines if not line.startswith("#")]
    assert head.startswith("# yaml-language-server")
    assert lines[0].startswith("# ")
    assert 3 <= len(settings) <= 10


@pytest.mark.parametrize("name", RUN)
def test_presets_run(run, tmp_path, name):
    flags, twins, steps = RUN[name]
    preset = ["--config", f"configs/trainer/{name}.yaml"]
    folder = tmp_path / "run"
    run([*SMALL, *preset, *flags, "--run_dir", folder], twins=twins)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", steps)
    if name == "overfit":
        with open(folder / "metrics.csv") as f:
            losses = [float(row["train/loss"]) for row in csv.DictReader(f) if row["train/loss"]]
        assert losses[-1] < 0.7 * losses[0]
    if name == "profile":
        assert "aten::" in (folder / "fit-profile.txt").read_text()


@pytest.mark.skipif(GPU, reason="what is refused where there is no GPU")
@pytest.mark.parametrize("name", REFUSED)
def test_presets_that_this_machine_lacks_devices_for_are_refused_in_one_line(run, tmp_path, name):
    preset = ["--config", f"configs/trainer/{name}.yaml"]
    output = run([*SMALL, *preset, "--run_dir", tmp_path / "run"], code=2)
    (line,) = (line for line in output.splitlines() if "rror" in line)
    assert REFUSED[name] in line
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def noting_samples(file):
    """A hook: write down which samples each micro-batch takes."""

    def first():
        step = Classification.training_step

        def noted(self, batch, batch_idx):
            with open(file, "a") as f:
                print(batch["index"].tolist(), file=f)
            return step(self, batch, batch_idx)

        Classification.training_step = noted

    return first


def test_the_same_batch_is_taken_in_each_epoch(run, tmp_path):
    """Also where it is divided; a part of a batch is refused."""
    flags = [*SMALL, "--config", "configs/trainer/overfit.yaml", "--data.micro_batch_size", 32]
    two = ["--trainer.overfit_batches", 2, "--trainer.max_epochs", 3]
    run([*flags, *two, "--run_dir", tmp_path / "run"], first=noting_samples(tmp_path / "samples"))
    taken = (tmp_path / "samples").read_text().splitlines()
    assert len({*taken}) == 2
    assert taken == taken[:2] * 3
    output = run([*flags, "--run_dir", tmp_path / "other"], code=2)
    assert "trainer.overfit_batches: it comes to 1 micro-batches, but a step has 2 -> take 2" in output


@pytest.mark.in_fork
@pytest.mark.parametrize("name", [*RUN])
def test_each_experiment_takes_each_preset(loaded, name, tmp_path):
    for path in sorted((ROOT / "configs/experiment").glob("*.yaml")):
        flags = ["--config", str(path), "--config", str(ROOT / f"configs/trainer/{name}.yaml")]
        request = read_request(command_parser("train", None), [*flags, *map(str, RUN[name][0])])
        experiment = Experiment(request)
        experiment.build(default_root_dir=str(tmp_path))
        assert experiment.trainer.max_steps != 0
