import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TableMLP(nn.Module):
    """A perceptron on embeddings of numbers and categories.

    A number becomes sines and cosines of learned frequencies, then `number_dim` units of its own (Gorishniy et al., On
    Embeddings for Numerical Features in Tabular Deep Learning, 2022); a category a learned vector.

    Args:
        dim: width of the hidden layers.
        depth: number of hidden layers.
        dropout: share of hidden units zeroed in training.
        num_frequencies: of each number; at 0 numbers go in as they are.
        frequency_std: standard deviation of the frequencies at the start: the greater, the finer are the steps seen.
        number_dim: units of each number's embedding.
        max_category_dim: most units of a category's embedding; it has about half as many as there are categories.
        num_classes: of the data, or numbers that are predicted.
        in_features: numbers of a row, which come first.
        cardinalities: categories of each column of codes; code 0 is for those not known, 1 for none.

    Shapes: x [N, in_features + len(cardinalities)] -> logits [N, num_classes].
    """

    def __init__(
        self,
        dim: int = 256,
        depth: int = 3,
        dropout: float = 0.1,
        num_frequencies: int = 16,
        frequency_std: float = 0.1,
        number_dim: int = 16,
        max_category_dim: int = 16,
        num_classes: int = 1,
        in_features: int = 1,
        cardinalities: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.periodic = Periodic(in_features, num_frequencies, frequency_std, number_dim) if num_frequencies else None
        sizes = [min(max_category_dim, (n + 1) // 2) for n in cardinalities]
        self.categories = nn.ModuleList(map(Category, cardinalities, sizes))
        width = in_features * (1 + number_dim * (self.periodic is not None)) + sum(sizes)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(dim if i else width, dim), nn.ReLU(), nn.Dropout(dropout)) for i in range(depth)
        )
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        numbers, codes = x[:, : self.in_features], x[:, self.in_features :].long()
        parts = [numbers.to(self.head.weight.dtype)]
        parts += [self.periodic(numbers)] if self.periodic else []
        parts += [table(codes[:, i]) for i, table in enumerate(self.categories)]
        x = torch.cat([part.to(parts[0].dtype) for part in parts], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Category(nn.Embedding):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.weight[:2] = 0  # train may have none of these


class Periodic(nn.Module):
    """Each number of x [N, F] -> `dim` units of its own: [N, F * dim]."""

    def __init__(self, in_features: int, num_frequencies: int, frequency_std: float, dim: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(in_features, num_frequencies) * frequency_std)
        scale = 1 / math.sqrt(2 * num_frequencies)
        self.weight = nn.Parameter(torch.empty(in_features, 2 * num_frequencies, dim).uniform_(-scale, scale))
        self.bias = nn.Parameter(torch.empty(in_features, dim).uniform_(-scale, scale))

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * self.frequencies.float() * x.float()[..., None]  # [N, F, num_frequencies]
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(self.weight.dtype)
        return F.relu(torch.einsum("nfk,fkd->nfd", waves, self.weight) + self.bias).flatten(1)
