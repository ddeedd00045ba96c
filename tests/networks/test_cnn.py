import pytest
import torch

from src.networks.cnn import CNN


def test_default_layers_are_the_beginners_cnn():
    # Convolutions 320 + 18,496 + 36,928, dense 36,928, classes 650: as Keras counts the same layers.
    assert sum(p.numel() for p in CNN().parameters()) == 93_322
    assert CNN()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_sizes_follow_from_the_facts():
    network = CNN((8, 16), padding=1, num_classes=7, in_channels=3, image_size=(12, 20))
    assert network(torch.zeros(2, 3, 12, 20)).shape == (2, 7)


def test_too_many_widths_are_refused():
    with pytest.raises(ValueError, match="too many for images"):
        CNN(image_size=(8, 8))
