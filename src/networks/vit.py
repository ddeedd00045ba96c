import math

import torch
from torch import Tensor, nn

from src.networks.transformer import Block, init


class ViT(nn.Module):
    """Classifies an image as a sequence of patches (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021).

    The layers are those of torchvision's VisionTransformer.

    Args:
        patch_size: height and width of a patch, in pixels.
        dim: width of the residual stream.
        depth: number of blocks.
        num_heads: attention heads of each block.
        mlp_ratio: hidden units of each perceptron, as a multiple of `dim`.
        dropout: share of activations zeroed in training.
        num_classes, in_channels, image_size: of the data; `image_size` is height and width in pixels.

    Shapes: x [N, in_channels, height, width] -> logits [N, num_classes].
    """

    def __init__(
        self,
        patch_size: int = 4,
        dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
    ) -> None:
        super().__init__()
        if any(size % patch_size for size in image_size):
            sizes = [n for n in range(1, min(image_size) + 1) if not any(size % n for size in image_size)]
            raise ValueError(f"images of {image_size} do not divide into patches of {patch_size}: take one of {sizes}")
        length = math.prod(size // patch_size for size in image_size)
        self.drop = nn.Dropout(dropout)
        self.patches = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, length + 1, dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, dropout, nn.LayerNorm, bias=True, causal=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        init(self, depth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # [N, patches, dim]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
