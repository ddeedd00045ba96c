from typing import Literal

from torch import Tensor, nn


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
        cell = nn.LSTM if kind == "lstm" else nn.GRU
        self.blocks = nn.ModuleList([cell(dim, dim, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """x [N, T] -> what the head makes logits of [N, T, dim]."""
        y, _ = self.blocks[0](self.dropout(self.embedding(x)))  # [N, T, dim]
        return self.dropout(y)
