import pytest
import torchvision
from torch import nn

from src.models.blocks import find_blocks
from src.networks.mlp import MLP
from src.run.errors import ConfigError


@pytest.fixture(scope="module")
def resnet():
    return torchvision.models.resnet18()


def test_a_network_of_ours_says_its_blocks():
    network = MLP(widths=[8, 8], image_size=(4, 4))
    assert find_blocks(network) == list(network.blocks)
    assert find_blocks(nn.Linear(1, 1)) == []


def test_blocks_of_a_foreign_network_are_named_in_the_order_of_the_network(resnet):
    found = find_blocks(resnet, ["layer2.*", "layer1.*"])
    assert found == [*resnet.layer1, *resnet.layer2]


def test_a_pattern_that_names_nothing_is_refused_with_the_nearest_name(resnet):
    with pytest.raises(ConfigError, match=r"model.blocks: no module layer9 in ResNet.*layer"):
        find_blocks(resnet, ["layer9"])


def test_blocks_within_blocks_are_refused(resnet):
    with pytest.raises(ConfigError, match=r"layer1.0 lies within layer1 "):
        find_blocks(resnet, ["layer1", "layer1.*"])
