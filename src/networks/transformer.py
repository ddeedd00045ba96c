"""Transformers with pre-norm blocks. N: batch, T: tokens, D: width of a head."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to what comes in, after a norm (Vaswani et al., 2017;
    pre-norm: Xiong et al., 2020)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
        norm: type[nn.Module],
        bias: bool,
        causal: bool,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            sizes = [n for n in range(1, dim + 1) if dim % n == 0]
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}: take one of {sizes}")
        self.num_heads, self.causal, self.drop = num_heads, causal, nn.Dropout(dropout)
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2 = norm(dim, eps=1e-6), norm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.up, self.down = nn.Linear(dim, hidden, bias=bias), nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """x [N, T, dim] -> [N, T, dim]; rotation [2, T, D / 2]."""
        x = x + self.drop(self.attend(self.norm1(x), rotation))
        return x + self.drop(self.down(self.drop(F.gelu(self.up(self.norm2(x))))))

    def attend(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)  # [N, num_heads, T, D]
        p = self.drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


def rotation(length: int, dim: int) -> Tensor:
    """Cosines and sines [2, length, dim / 2] of rotary positions (Su et al., RoFormer, 2021)."""
    # In float32 also where a network is made in bfloat16, which has no whole numbers between 256 and 258.
    frequencies = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [N, num_heads, T, D] by its positions: a product of two then depends on their distance alone."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def init(module: nn.Module, depth: int) -> None:
    """Normal weights of deviation 0.02; smaller ones where they write into the residual stream (GPT-2)."""
    for name, child in module.named_modules():
        if isinstance(child, (nn.Linear, nn.Embedding)):
            scale = math.sqrt(2 * depth) if name.endswith((".out", ".down")) else 1
            nn.init.normal_(child.weight, std=0.02 / scale)
        if isinstance(child, nn.Linear) and child.bias is not None:
            nn.init.zeros_(child.bias)


class GPT(nn.Module):
    """Predicts the next token from those before it: rotary positions, RMS norm, no biases.

    With tied embeddings it has as many parameters as nanoGPT without biases, position embeddings not counted.

    Args:
        dim: width of the residual stream.
        depth: number of blocks.
        num_heads: attention heads of each block.
        mlp_ratio: hidden units of each perceptron, as a multiple of `dim`.
        dropout: share of activations zeroed in training.
        tie_embeddings: use the token embedding as the last layer, too.
        vocab_size: number of tokens.
        seq_len: the longest input.

    Shapes: x int64 [N, T], T up to seq_len -> logits [N, T, vocab_size].

    Raises:
        ValueError: `dim` is not divisible into heads of even width.
    """

    def __init__(
        self,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        vocab_size: int = 256,
        seq_len: int = 256,
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, dropout, nn.RMSNorm, bias=False, causal=True) for _ in range(depth)
        )
        if dim // num_heads % 2:
            raise ValueError(f"heads of width {dim // num_heads} cannot be rotated: take an even dim / num_heads")
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        init(self, depth)
        if tie_embeddings:
            self.head.weight = self.embedding.weight
        self.register_buffer("rotation", rotation(seq_len, dim // num_heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.get_buffer("rotation")[:, : x.shape[1]]
        x = self.drop(self.embedding(x))  # [N, T, dim]
        for block in self.blocks:
            x = block(x, positions)
        return self.head(self.norm(x))


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

    Raises:
        ValueError: the image is not divisible into patches, or `dim` not into heads.
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
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
