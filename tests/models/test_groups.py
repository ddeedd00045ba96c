import pytest
import torch
import torchvision
from conftest import SMALL
from torch import nn

from src.models.blocks import find_blocks
from src.models.factory import parameter_groups
from src.networks.cnn import CNN  # kind: images
from src.networks.gpt import GPT  # kind: text
from src.networks.text_rnn import TextRNN  # kind: text
from src.networks.vit import ViT  # kind: images


def sorted_names(network: nn.Module, key: str, value: object) -> list[str]:
    """Names of the parameters in groups that have this value."""
    names = {p: name for name, p in network.named_parameters()}
    groups = parameter_groups(network, network, find_blocks(network))
    return sorted(names[p] for group in groups if group.get(key) == value for p in group["params"])


NETWORKS = {
    "CNN": lambda: CNN((4, 4), padding=1, batch_norm=True, image_size=(8, 8)),  # kind: images
    "GPT": lambda: GPT(dim=16, depth=2, num_heads=2),  # kind: text
    "ViT": lambda: ViT(dim=16, depth=2, num_heads=2),  # kind: images
    "TextRNN": lambda: TextRNN(dim=8),  # kind: text
    "resnet18": lambda: torchvision.models.resnet18(num_classes=3),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_parameter_is_in_one_group_and_vectors_do_not_decay(kind):
    network = NETWORKS[kind]()
    grouped = [p for group in parameter_groups(network, network, find_blocks(network)) for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(network.parameters()))
    undecayed = set(sorted_names(network, "weight_decay", 0.0))
    vectors = {name for name, p in network.named_parameters() if p.ndim < 2}
    assert undecayed - vectors == ({"token", "positions"} if kind == "ViT" else set())
    assert vectors <= undecayed


def test_matrices_for_muon_are_those_inside_the_blocks():
    # kind: text
    hidden = sorted_names(NETWORKS["GPT"](), "hidden", True)
    assert hidden == sorted(f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("qkv", "out", "up", "down"))
    # end
    assert sorted_names(NETWORKS["CNN"](), "hidden", True) == ["blocks.0.0.weight", "blocks.1.0.weight"]  # kind: images
    foreign = sorted_names(NETWORKS["resnet18"](), "hidden", True)
    assert len(foreign) == 19
    assert not {"conv1.weight", "fc.weight"} & set(foreign)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "NAdam", "Adafactor", "Rprop"])
def test_optimizers_of_torch_run(run, tmp_path, name):
    flags = ["--model.optimizer", f"torch.optim.{name}", "--model.optimizer.lr", 1e-3, "--run_dir", tmp_path / "run"]
    run([*SMALL, *flags, "--config", "configs/trainer/smoke.yaml"])
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    decays = [group["weight_decay"] for group in saved["param_groups"] if "weight_decay" in group]
    assert decays.count(0.0) >= 1 or name == "Rprop"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.optimizer.lr", -1], "model.optimizer: Invalid learning rate: -1"),
        (["--model.schedule.warmup_frac", 2], "model.schedule: warmup_frac is from 0"),
        (["--model.optimizer", "torch.optim.LBFGS"], "model.optimizer: LBFGS doesn't support per-parameter options"),
    ],
)
def test_refusals_are_one_line(run, tmp_path, flags, message):
    output = run([*SMALL, "--config", "configs/trainer/smoke.yaml", *flags, "--run_dir", tmp_path / "run"], code=2)
    assert message in output
    assert sum("error: " in line for line in output.splitlines()) == 1
