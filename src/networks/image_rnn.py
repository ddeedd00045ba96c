from typing import Literal

from torch import Tensor, nn


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
        cell = nn.LSTM if kind == "lstm" else nn.GRU
        self.blocks = nn.ModuleList(
            [cell(in_channels * image_size[1], dim, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)]
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)  # [N, height, in_channels * width]
        y, _ = self.blocks[0](rows)  # [N, height, dim]
        return self.head(self.dropout(y[:, -1]))
