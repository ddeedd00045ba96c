import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.networks.known_future import KnownFuture, refuse_past
from src.networks.transformer import Block, init


class PatchTransformer(nn.Module):
    """A transformer on patches of each channel by itself, with one set of weights for all (PatchTST; Nie et al., A Time
    Series is Worth 64 Words, 2023).

    Args:
        patch_size: steps of a patch.
        stride: steps from one patch to the next; the last value is repeated so that the window's end is whole.
        dim: width of a patch's representation.
        depth: number of blocks.
        num_heads: attention heads of a block.
        mlp_ratio: width of the perceptron in a block over dim.
        dropout: share of activations zeroed in training.
        window, horizon: steps that are seen, and forecast.
        in_channels, out_channels, num_known: columns of the data, how many first ones are forecast, and how many last
            ones are known in the future.
        num_quantiles: numbers for each step and channel.

    Shapes: x [N, window or window + horizon, in_channels] -> [N, horizon, out_channels * num_quantiles].
    """

    def __init__(
        self,
        patch_size: int = 16,
        stride: int = 8,
        dim: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        window: int = 96,
        horizon: int = 96,
        in_channels: int = 1,
        out_channels: int = 1,
        num_known: int = 0,
        num_quantiles: int = 1,
    ) -> None:
        super().__init__()
        if patch_size > window:
            raise ValueError(f"patch_size {patch_size} is more than the window of {window}")
        refuse_past("PatchTransformer", in_channels - out_channels - num_known)
        self.patch_size, self.stride, self.window, self.horizon = patch_size, stride, window, horizon
        self.out_channels = out_channels
        num_patches = (window - patch_size) // stride + 2
        self.patches = nn.Linear(patch_size, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(num_patches, dim))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, dropout, nn.LayerNorm, bias=True, causal=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(num_patches * dim, horizon * num_quantiles)
        self.known = KnownFuture(num_known, window, out_channels * num_quantiles) if num_known else None
        init(self.blocks, depth)

    def forward(self, x: Tensor) -> Tensor:
        past = x[:, : self.window, : self.out_channels].transpose(1, 2)  # [N, C, window]
        patches = F.pad(past, (0, self.stride), mode="replicate").unfold(2, self.patch_size, self.stride)
        y = self.drop(self.patches(patches) + self.positions).flatten(0, 1)  # [N * C, P, dim]
        for block in self.blocks:
            y = block(y)
        y = self.head(self.drop(self.norm(y).flatten(1)))  # [N * C, horizon * Q]
        y = y.unflatten(0, (-1, self.out_channels)).unflatten(2, (self.horizon, -1))  # [N, C, horizon, Q]
        y = y.transpose(1, 2).flatten(2)
        return y + self.known(x) if self.known else y
