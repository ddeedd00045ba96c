import json
import os
import shutil
import signal

import pytest
import torch
import torchvision  # kind: images
from conftest import (
    DIGITS,  # kind: images
    SMALL,
    SMALL_CNN,  # kind: images
)

from src import evaluate
from src.models.classification import Classification

SMOKE = ["--config", "configs/trainer/smoke.yaml"]


@pytest.fixture
def first(run, tmp_path):
    run([*SMALL, *SMOKE, "--run_dir", tmp_path / "first"])
    return tmp_path / "first"


def weights(run_dir, name="last"):
    state = torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=True)
    return {name.removeprefix("network."): t for name, t in state["state_dict"].items()}


def frozen_from(source, run_dir, config=SMALL):
    """A run that begins with the weights of another, of which only the last layer is trained."""
    others = "['blocks.*']" if config is SMALL else "['blocks.*', head.1.*]"
    return [*config, *SMOKE, "--model.init_from", source, "--model.freeze", others, "--run_dir", run_dir]


LAST = [(SMALL, 6, {"head.weight", "head.bias"})]
LAST += [(SMALL_CNN, 16, {"head.4.weight", "head.4.bias"})]  # kind: images


@pytest.mark.parametrize(("config", "tensors", "last"), LAST, ids=["network", "with batch norms"][: len(LAST)])
@pytest.mark.parametrize("kind", ["run", "checkpoint", "weights"])
def test_frozen_weights_stay_those_of_the_source(run, tmp_path, kind, config, tensors, last):
    first = tmp_path / "first"
    run([*config, *SMOKE, "--run_dir", first])
    source = {"run": first, "checkpoint": first / "checkpoints/best.ckpt", "weights": tmp_path / "my_Weights.pt"}[kind]
    torch.save(weights(first, "best"), tmp_path / "my_Weights.pt")
    output = run(frozen_from(source, tmp_path / "run", config))
    assert f"weights   {tensors} of {tensors} tensors from {source}\n" in output
    before, after = weights(first, "best"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == last  # the batch norms' statistics are frozen, too
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert len(saved["state"]) == 2


# kind: images
RESNET = [*SMALL_CNN, *SMOKE, "--data.channels", "3", "--model.network", "torchvision.models.resnet18"]


def test_weights_of_torchvision_are_taken_by_name(run, tmp_path, monkeypatch):
    """From the folder where torch keeps what it has downloaded; the head is new, as it has other classes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), file)
    named = ["--model.init_from", "ResNet18_Weights.IMAGENET1K_V1", "--model.freeze", "[conv1.*]"]
    output = run([*RESNET, *named, "--run_dir", tmp_path / "run"])
    assert "120 of 122 tensors from ResNet18_Weights.IMAGENET1K_V1; new here: fc.weight [10, 512]" in output
    assert torch.equal(weights(tmp_path / "run")["conv1.weight"], network.conv1.weight)


def test_weights_of_torchvision_that_cannot_be_had(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    for flags, code, message in (
        (
            ["--model.init_from", "ResNet18_Weights.DEFAULT"],
            75,
            f"give its path to model.init_from, or put it into {tmp_path}/hub/checkpoints",
        ),
        (["--model.init_from", "Resnet18_Weights.DEFAULT"], 2, "did you mean ResNet18_Weights.DEFAULT?"),
        (["--model.network.weights", "DEFAULT"], 2, '--model.network.weights: "DEFAULT" is not'),
    ):
        assert message in run([*RESNET, *flags, "--run_dir", tmp_path / "run"], code=code)
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("<html>")
    flags = [*RESNET, "--model.init_from", "ResNet18_Weights.DEFAULT", "--run_dir", tmp_path / "run"]
    assert f"or put it into {tmp_path}/hub/checkpoints" in run(flags, code=75)


# end


def test_afterwards_the_source_is_not_needed(run, tmp_path, first):
    run([*frozen_from(first, tmp_path / "run"), "--trainer.limit_test_batches", "1.0"])
    shutil.rmtree(first)
    acc = json.loads((tmp_path / "run/summary.json").read_text())["test/acc"]
    assert f"test/acc {acc:.4f}" in run(["--run_dir", tmp_path / "run"], command=evaluate.main)


def test_a_head_of_another_size_begins_anew(run, tmp_path, first):
    flags = ["--model.network.widths", "[32,24]", "--model.init_from", first]
    output = run([*SMALL, *SMOKE, *flags, "--run_dir", tmp_path / "run"])
    (line,) = [line for line in output.splitlines() if line.startswith("weights ")]
    assert "3 of 6 tensors" in line
    assert "new here: blocks.1.0.weight [24, 32], blocks.1.0.bias [24], head.weight [10, 24]" in line
    assert "not used from there: blocks.1.0.weight [16, 32]" in line


# kind: images
def test_weights_of_torchvision(run, tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), tmp_path / "w.pth")
    flags = ["--model.network", "torchvision.models.resnet18", "--data.channels", 3, "--model.freeze", "[layer*]"]
    flags += ["--model.init_from", tmp_path / "w.pth", "--data.batch_size", 8, "--run_dir", tmp_path / "run"]
    output = run([*DIGITS, *SMOKE, *flags])
    assert "new here: fc.weight [10, 512], fc.bias [10]" in output


# end


def test_a_run_that_goes_on_takes_its_own_checkpoint(start, run, tmp_path, first):
    def die_in_last_step():
        step = Classification.training_step

        def dying(self, batch, batch_idx):
            if batch_idx == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, batch_idx)

        Classification.training_step = dying

    run(frozen_from(first, tmp_path / "whole"))
    args = [*frozen_from(first, tmp_path / "run"), "--checkpoints.every_n_steps", 1]
    assert start(args, first=die_in_last_step).wait() == -9
    (first / "checkpoints/best.ckpt").unlink()  # and does not need the source any more
    output = run(args)
    assert "going on after" in output
    assert "tensors from" not in output
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], t) for name, t in resumed.items())


def test_bad_sources_are_refused(run, tmp_path, first):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    for name, message in {
        "nowhere": "no such file", "junk.pt": "not a file that can be read safely", "list.pt": "no names",
        "other.pt": "fits MLP: there a [2]; here blocks.0.0.weight [32, 64]",
    }.items():  # fmt: skip
        flags = ["--model.init_from", tmp_path / name, "--run_dir", tmp_path / f"run_{name}"]
        output = run([*SMALL, *SMOKE, *flags], code=4)
        assert message in output.splitlines()[-1]
        assert not (tmp_path / f"run_{name}").exists()  # a start that is refused leaves nothing


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("block.*", "no parameter is called block.*; there are blocks.*, head.*"),
        ("zzz", "no parameter is called zzz; there are blocks.*, head.*"),
        ("*", "nothing is left to train"),
    ],
)
def test_patterns_that_are_wrong(run, tmp_path, pattern, message):
    output = run([*SMALL, *SMOKE, "--model.freeze", f"['{pattern}']", "--run_dir", tmp_path / "run"], code=2)
    assert message in output
