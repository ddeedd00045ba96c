import torch

from src.networks.mlp import MLP


def test_mlp_flattens_the_image():
    network = MLP((5, 6), num_classes=3, in_channels=2, image_size=(4, 4))
    assert network(torch.zeros(2, 2, 4, 4)).shape == (2, 3)
    assert sum(p.numel() for p in network.parameters()) == (32 * 5 + 5) + (5 * 6 + 6) + (6 * 3 + 3)


def test_mlp_takes_numbers_that_are_no_image():
    network = MLP((5,), num_classes=3, in_features=7)
    assert network(torch.zeros(2, 7)).shape == (2, 3)
    assert sum(p.numel() for p in network.parameters()) == (7 * 5 + 5) + (5 * 3 + 3)
