import pytest
import torch
from torchvision.models import VisionTransformer

from src.networks.vit import ViT


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


def to_ours(state: dict, depth: int) -> dict:
    """Weights of torchvision's VisionTransformer under our names."""
    names = {"class_token": "token", "conv_proj": "patches", "encoder.pos_embedding": "positions"}
    names |= {"encoder.ln.": "norm.", "heads.head": "head", "ln_1": "norm1", "ln_2": "norm2", "mlp.0": "up"}
    names |= {"mlp.3": "down", "self_attention.in_proj_": "qkv.", "self_attention.out_proj": "out"}
    names |= {f"encoder.layers.encoder_layer_{i}": f"blocks.{i}" for i in range(depth)}
    out = {}
    for name, weight in state.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        out[name] = weight
    return out


def test_vit_is_torchvisions():
    theirs = VisionTransformer(16, 4, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=128, num_classes=7).eval()
    torch.nn.init.normal_(theirs.heads.head.weight)  # zero at the start
    ours = ViT(4, 32, 3, 4, num_classes=7, in_channels=3, image_size=(16, 16)).eval()
    ours.load_state_dict(to_ours(theirs.state_dict(), 3))
    x = torch.randn(5, 3, 16, 16)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_vit_b_16_has_its_published_size():
    with torch.device("meta"):
        network = ViT(16, 768, 12, 12, num_classes=1000, in_channels=3, image_size=(224, 224))
    assert count(network) == 86_567_656


def test_every_parameter_learns():
    network = ViT(2, 16, 2, 2, dropout=0.1, num_classes=3, image_size=(4, 6))
    network(torch.randn(2, 1, 4, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViT(patch_size=3, image_size=(28, 28)), "take one of .1, 2, 4, 7, 14, 28"),
        (lambda: ViT(dim=10, num_heads=3), "divisible"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
