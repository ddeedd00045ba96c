import math
from functools import partial

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
        """x [N, T, dim] -> [N, T, dim]; rotation [2, T, D], where D is the width of a head."""
        x = x + self.drop(self.attend(self.norm1(x), rotation))
        return x + self.drop(self.down(self.drop(F.gelu(self.up(self.norm2(x))))))

    def attend(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3 * self.num_heads, -1)).transpose(1, 2)  # [N, 3 * num_heads, T, D]
        qk, v = heads.split([2 * self.num_heads, self.num_heads], 1)
        if rotation is not None:
            qk = rotate(qk, *rotation)
        p = self.drop.p if self.training else 0.0
        q, k = qk.chunk(2, 1)
        y = attention(q, k, v, p, self.causal)  # [N, num_heads, T, D]
        return self.out(y.transpose(1, 2).flatten(2))


def attention(q: Tensor, k: Tensor, v: Tensor, p: float, causal: bool) -> Tensor:
    attend = partial(F.scaled_dot_product_attention, dropout_p=p, is_causal=causal)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return attend(q, k, v)
    with torch.autocast("cpu", enabled=False):  # torch's kernel takes twice as long in bfloat16 as in float32
        return attend(q.float(), k.float(), v.float()).to(q.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [N, num_heads, T, D] by its positions: a product of two then depends on their distance alone."""
    a, b = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([b, a], -1) * sin.to(x.dtype)


def init(module: nn.Module, depth: int) -> None:
    """Normal weights of deviation 0.02; smaller ones where they write into the residual stream (GPT-2)."""
    for name, child in module.named_modules():
        if isinstance(child, (nn.Linear, nn.Embedding)):
            scale = math.sqrt(2 * depth) if name.endswith((".out", ".down")) else 1
            nn.init.normal_(child.weight, std=0.02 / scale)
        if isinstance(child, nn.Linear) and child.bias is not None:
            nn.init.zeros_(child.bias)
