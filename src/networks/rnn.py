"""Recurrent networks: LSTM (Hochreiter and Schmidhuber, 1997) and GRU (Cho et al., 2014)."""

from typing import Literal

from torch import Tensor, nn


def recurrent(kind: str, in_features: int, dim: int, depth: int, dropout: float) -> nn.LSTM | nn.GRU:
    cls = nn.LSTM if kind == "lstm" else nn.GRU
    return cls(in_features, dim, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)


class ImageRNN(nn.Module):
    """Reads an image row by row, from the top, and classifies it by the last output.

    Args:
        kind: the cell.
        dim: units of each layer.
        depth: number of layers.
        dropout: share of the outputs of each layer zeroed in training.
        num_classes, in_channels, image_size: of the data; `image_size` is height and width in pixels.

    Shapes: x [N, in_channels, height, width] -> logits [N, num_classes].
    """

    def __init__(
        self,
        kind: Literal["lstm", "gru"] = "lstm",
        dim: int = 128,
        depth: int = 2,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([recurrent(kind, in_channels * image_size[1], dim, depth, dropout)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)  # [N, height, in_channels * width]
        y, _ = self.blocks[0](rows)  # [N, height, dim]
        return self.head(self.dropout(y[:, -1]))


class TextRNN(nn.Module):
    """Predicts the next token from those before it.

    Args:
        kind: the cell.
        dim: width of the embedding and of each layer.
        depth: number of layers.
        dropout: share of activations zeroed in training.
        vocab_size: number of tokens.

    Shapes: x int64 [N, T] -> logits [N, T, vocab_size].
    """

    def __init__(
        self,
        kind: Literal["lstm", "gru"] = "lstm",
        dim: int = 256,
        depth: int = 2,
        dropout: float = 0.0,
        vocab_size: int = 256,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList([recurrent(kind, dim, dim, depth, dropout)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.blocks[0](self.dropout(self.embedding(x)))  # [N, T, dim]
        return self.head(self.dropout(y))
