"""What an exported model does before its network: raw input, by names, to the batch that the network gets."""

from typing import Any

import torch
from torch import Tensor, nn

from src.data.loader import Batch


class Inlet(nn.Module):
    """Arithmetic alone, of raw tensors, with what was fitted on the training data; `forward(raw)` gives the batch.

    Args:
        inputs: name -> dtype, shape (a letter is a size that is free) and meaning; of whole numbers what they are
            `below`; of words, which have no tensors, the code of each one (`codes`; of all others it is 0).
        beside: plain data or, by the name of a file, text that users of the model need besides.
    """

    def __init__(self, inputs: dict[str, dict[str, Any]], **beside: Any) -> None:
        super().__init__()
        self.inputs, self.beside = inputs, beside

    def forward(self, raw: dict[str, Tensor]) -> Batch:
        raise NotImplementedError

    def keep(self, **values: Any) -> None:
        """Plain numbers as float64 buffers."""
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
