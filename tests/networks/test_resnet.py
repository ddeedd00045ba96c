import pytest
import torch
import torchvision

from src.networks.resnet import ResNet

BOTTLENECKS = {"depths": (3, 4, 6, 3), "bottleneck": True}


@pytest.mark.parametrize(("theirs", "arguments"), [("resnet18", {}), ("resnet50", BOTTLENECKS)])
def test_it_is_torchvisions(theirs, arguments):
    reference = getattr(torchvision.models, theirs)().eval()
    network = ResNet(**arguments, stem="large", num_classes=1000).eval()
    weights = reference.state_dict().values()  # both register their layers in the order in which they are used
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(network(x), reference(x), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (9, 13), (1, 1)])
def test_small_images(size):
    assert ResNet((1, 1), (4, 8), num_classes=5, in_channels=2)(torch.randn(2, 2, *size)).shape == (2, 5)


def test_blocks_begin_by_passing_on_their_input():
    block = ResNet((2,), (4,)).eval().blocks[1]
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_depths_and_widths_go_together():
    with pytest.raises(ValueError, match="2 depths but 1 widths"):
        ResNet((1, 1), (4,))
