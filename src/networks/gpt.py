import torch
from torch import Tensor, nn

from src.networks.transformer import Block, init


def rotation(length: int, dim: int) -> Tensor:
    """Cosines and signed sines [2, length, dim] of rotary positions (Su et al., RoFormer, 2021)."""
    # In float32 also where a network is made in bfloat16, which has no whole numbers between 256 and 258.
    frequencies = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])


class GPT(nn.Module):
    """Predicts the next token from those before it: rotary positions, RMS norm, no biases.

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
        # One more than is used: torch.export takes a slice of all for another case.
        self.register_buffer("rotation", rotation(seq_len + 1, dim // num_heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """x [N, T] -> what the head makes logits of [N, T, dim]."""
        positions = self.get_buffer("rotation")[:, : x.shape[1]]
        x = self.drop(self.embedding(x))  # [N, T, dim]
        for block in self.blocks:
            x = block(x, positions)
        return self.norm(x)
