"""Weights of others for images: torchvision's and timm's networks, files as people have them, what they expect."""

import json
import os
import sys

import pytest
import timm
import torch
import torchvision
from conftest import DIGITS
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torchvision.models import ResNet18_Weights

import src.evaluate
import src.plan
import src.predict
from src.data.images.module import ImageDataModule
from src.models.finetuning import expected_images, unlike
from src.run import checkpoint

SMOKE = ["--config", "configs/trainer/smoke.yaml", "--pictures.enabled", "false", "--data.batch_size", 16]
RESNET = [*DIGITS, *SMOKE, "--data.channels", 3, "--model.network", "torchvision.models.resnet18"]
TIMM = [*DIGITS, *SMOKE, "--model.network", "timm.create_model", "--model.network.model_name"]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def end_of(folder):
    return checkpoint.load(folder / "checkpoints/last.ckpt")


def line_of(output, begin="weights   expect"):
    (line,) = [line for line in output.splitlines() if line.startswith(begin)]
    return line


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


def write(path, state):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "prefix", "holder"),
    [
        ("resnet18-f37072fd.pth", "", ""),
        ("w.safetensors", "module.", ""),
        ("w.pt", "module._orig_mod.", "model"),
        ("w2.safetensors", "model.network.", ""),
    ],
)
def test_files_as_people_have_them(run, tmp_path, resnet, name, prefix, holder):
    state = {prefix + name: t for name, t in resnet.state_dict().items()}
    write(tmp_path / name, {holder: state, "epoch": 3} if holder else state)
    args = [*RESNET, "--model.init_from", tmp_path / name, "--model.freeze", "['conv1.*', 'bn1.*', 'layer*']"]
    output = run([*args, "--run_dir", tmp_path / "run"])
    assert f"120 of 122 tensors from {tmp_path / name}; new here: fc.weight [10, 512], fc.bias [10]; not used" in output
    after = end_of(tmp_path / "run")["state_dict"]
    moved = {n for n, t in resnet.state_dict().items() if not torch.equal(after[f"network.{n}"], t)}
    assert moved == {"fc.weight", "fc.bias"}
    if name.startswith("resnet18-"):  # called as torchvision calls it
        expects = line_of(output)
        assert f"mean {MEAN}, here [0.30" in expects
        assert "-> data.mean; std [0.229" in expects
        assert "image_size [224, 224], here [8, 8] -> data.image_size" in expects
        assert "in_channels" not in expects
    else:
        assert "weights   expect" not in output
    os.remove(tmp_path / name)
    run(["--run_dir", tmp_path / "run"], command=src.evaluate.main)


def test_files_that_do_not_fit(run, tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 9)
    save_file({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "shape.safetensors")
    for name, text in {
        "junk.safetensors": "not a file that can be read safely",
        "shape.safetensors": "fits ResNet: there conv1.weight [3, 3]; here conv1.weight [64, 3, 7, 7]",
        "none.safetensors": "no such file",
    }.items():
        output = run([*RESNET, "--model.init_from", tmp_path / name, "--run_dir", tmp_path / "run"], code=4)
        assert text in output.splitlines()[-1]
        assert not (tmp_path / "run").exists()


def test_given_statistics_are_what_torchvisions_transforms_do(tmp_path):
    """On photographs, at 224 pixels: the same numbers, and then nothing is told."""
    for k, photo in enumerate(load_sample_images().images):
        for i in range(12):
            folder = tmp_path / f"images/{k}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[10 * i : 10 * i + 224, 20 * i : 20 * i + 224]).save(folder / f"{i}.png")
    common = {"data_dir": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
    data = ImageDataModule("folder", mean=MEAN, std=STD, **common)
    data.setup("fit")
    x = data.splits["train"][torch.arange(8)]
    expected = torch.stack([ResNet18_Weights.DEFAULT.transforms(resize_size=224)(image) for image in x["x"]])
    given = data.on_after_batch_transfer(x, 0)["x"]
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=2e-6)
    wanted = expected_images("ResNet18_Weights.DEFAULT", torch.nn.Identity())
    assert unlike(wanted, data.facts | data.statistics) == ""
    plain = ImageDataModule("folder", **common)
    plain.setup("fit")
    text = unlike(wanted, plain.facts | plain.statistics)
    assert "data.mean" in text
    assert "image_size" not in text
    assert plain.content == data.content  # they are not prepared anew


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--data.mean", "[0.5, 0.5]"], "data.mean, data.std: give 1 numbers"),
        (["--data.std", "[0.0]"], "data.std [0.0] -> take a std above 0"),
        (["--data.mean", "[0.5]", "--data.normalize", "false"], "leave data.normalize true"),
        (["--data.mean", "0.5"], "expected list"),
    ],
)
def test_statistics_that_are_refused(run, tmp_path, flags, text):
    assert text in run([*DIGITS, *SMOKE, *flags, "--run_dir", tmp_path / "run"], code=2)


def test_given_statistics_go_with_the_model(run, tmp_path):
    run([*RESNET, "--data.mean", str(MEAN), "--data.std", str(STD), "--run_dir", tmp_path / "run"])
    assert end_of(tmp_path / "run")["ImageDataModule"]["statistics"]["mean"] == MEAN
    run(["--run_dir", tmp_path / "run"], command=src.predict.main)


@pytest.mark.parametrize(
    ("name", "flags", "blocks", "held"),
    [
        ("resnet10t", [], "['layer*.*']", "layer1.*"),
        ("vit_tiny_patch16_224", ["--model.network.patch_size", 4, "--model.network.depth", 2], "[]", "blocks.0.*"),
    ],
)
def test_networks_of_timm(run, tmp_path, name, flags, blocks, held):
    """By create_model and by the model's own function; facts, groups, blocks, freezing, plan and prediction."""
    more = ["--model.blocks", blocks, "--model.activation_checkpointing", "true", "--model.freeze", f"['{held}']"]
    args = [*TIMM, name, *flags, *more, "--run_dir", tmp_path / "run"]
    assert "frozen" in run(args)
    end, config = end_of(tmp_path / "run"), {"num_classes": 10, "in_chans": 1}
    model = timm.create_model(name, **config, **({"img_size": 8, "patch_size": 4, "depth": 2} if flags else {}))
    model.load_state_dict({n.removeprefix("network."): t for n, t in end["state_dict"].items()})
    groups = end["optimizer_states"][0]["param_groups"]
    decayed = sum(len(g["params"]) for g in groups if g["weight_decay"])
    trained = [(n, p) for n, p in model.named_parameters() if not n.startswith(held[:-1])]
    assert decayed == sum(n.endswith("weight") and p.ndim > 1 for n, p in trained)
    assert sum(len(g["params"]) for g in groups) == len(trained)
    assert any(g["hidden"] for g in groups)
    run(["--run_dir", tmp_path / "run"], command=src.predict.main)
    plan = run([*TIMM, name, *flags, *more], command=src.plan.main)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in plan
    path = [*DIGITS, *SMOKE, "--model.network", f"timm.models.{name}", *flags]
    run([*path, "--run_dir", tmp_path / "other"])
    assert end_of(tmp_path / "other")["state_dict"].keys() == end["state_dict"].keys()


def test_a_class_of_timm_keeps_no_facts_in_the_config(run, tmp_path):
    args = [*DIGITS, *SMOKE, "--model.network", "timm.models.vision_transformer.VisionTransformer"]
    args += ["--model.network.patch_size", 4, "--model.network.embed_dim", 12, "--model.network.depth", 1]
    run([*args, "--run_dir", tmp_path / "run"])
    assert " img_size:" not in (tmp_path / "run/config.yaml").read_text()
    run(["--run_dir", tmp_path / "run"], command=src.evaluate.main)


def test_names_that_timm_does_not_know(run, tmp_path):
    assert "Unknown model (resnet10x)" in run([*TIMM, "resnet10x", "--run_dir", tmp_path / "run"], code=2)
    contradicts = run([*TIMM, "resnet10t", "--model.network.in_chans", 3, "--run_dir", tmp_path / "run"], code=2)
    assert "model.network.in_chans: 3 in the config, 1 in the data -> drop it" in contradicts


def test_without_timm(run, tmp_path):
    gone = lambda: sys.modules.update(timm=None)  # noqa: E731
    output = run([*TIMM, "resnet10t", "--run_dir", tmp_path / "run"], code=2, first=gone)
    assert '-> pip install -e ".[timm]"' in output.splitlines()[-1]


def test_weights_that_come_with_a_network_are_taken_once(run, tmp_path, monkeypatch):
    """From the cache of the hub, made to fit the channels by timm; the trained model needs it no more."""
    torch.manual_seed(0)
    full = timm.create_model("resnet10t")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries for a minute
    args = [*TIMM, "resnet10t", "--model.network.pretrained", "true", "--model.network.cache_dir", tmp_path / "hub"]
    offline = run([*args, "--run_dir", tmp_path / "none"], code=75).splitlines()[-1]
    assert "error: model.network.pretrained: " in offline
    assert "-> fetch it where there is a network and give its path to model.init_from" in offline
    repository = tmp_path / "hub/models--timm--resnet10t.c3_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    save_file(full.state_dict(), snapshot / "model.safetensors")
    args += ["--model.freeze", "['conv1.*', 'layer*']"]
    output = run([*args, "--run_dir", tmp_path / "run"])
    assert "tensors from the network's own" in output
    assert "in_channels 3, here [1] -> data.channels" in line_of(output)
    after = end_of(tmp_path / "run")["state_dict"]
    assert torch.equal(after["network.layer1.0.conv1.weight"], full.layer1[0].conv1.weight)
    summed = full.conv1[0].weight.sum(1, keepdim=True)
    torch.testing.assert_close(after["network.conv1.0.weight"], summed)
    os.rename(tmp_path / "hub", tmp_path / "gone")
    before = json.loads((tmp_path / "run/summary.json").read_text())["test/acc"]
    assert before >= 0
    run(["--run_dir", tmp_path / "run"], command=src.evaluate.main)
    assert "going on" in run(
        [*args, "--trainer.max_epochs", "2", "--resume", tmp_path / "run", "--run_dir", tmp_path / "more"]
    )
