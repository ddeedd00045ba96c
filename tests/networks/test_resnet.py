import pytest
import torch
import torchvision
from torch import nn

from src.networks.resnet import ResNet


def test_it_is_torchvisions_but_for_the_stem():
    reference = torchvision.models.resnet18(num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    network = ResNet()
    weights = reference.state_dict().values()  # both register their layers in the order in which they are used
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(network.eval()(x), reference.eval()(x), atol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (9, 13), (1, 1)])
def test_small_images(size, pool):
    network = ResNet((1, 1), (4, 8), pool=pool, num_classes=5, in_channels=2)
    assert network(torch.randn(2, 2, *size)).shape == (2, 5)


def test_stages_that_pool():
    network = ResNet((0, 1, 0, 1), (64, 128, 256, 512), pool=True)
    assert sum(p.numel() for p in network.parameters()) == 6_573_130  # as Page counts, and the biases of the head
    x = torch.randn(2, 64, 8, 8)
    halving = network.blocks[0].eval()
    pooled = torch.nn.functional.max_pool2d(halving.conv(x), 2)
    assert torch.equal(halving(x), torch.relu(halving.norm(pooled)))


def test_blocks_begin_by_passing_on_their_input():
    block = ResNet((2,), (4,)).eval().blocks[1]
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_depths_and_widths_go_together():
    with pytest.raises(ValueError, match="2 depths but 1 widths"):
        ResNet((1, 1), (4,))
