from typing import Any

import torch

from src.data.module import Arrays, DataModule

SIZES = {"train": 1293, "val": 144, "test": 360}


class WavesDataModule(DataModule):
    """Noisy sine waves of 64 points; the class is the frequency. They need no file, so the tests of what all kinds of
    data share train on them, and a data module of your own can begin as a copy.

    Args:
        noise: standard deviation of what is added to each point; the waves reach from -1 to 1.
    """

    provides = ("num_classes", "in_features")  # facts, which no config states

    def __init__(self, noise: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise = noise

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        for split, size in SIZES.items():
            targets = torch.randint(10, (size,), generator=generator)
            waves = torch.sin((targets[:, None] + 1) * torch.linspace(0, 6.28, 64))  # [N, 64]
            self.splits[split] = Arrays(waves + self.noise * torch.randn(size, 64, generator=generator), targets)
        self.facts = {"num_classes": 10, "in_features": 64}
