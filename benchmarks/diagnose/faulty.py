"""Networks, models, data modules and callbacks with one fault each, for the validation of src.diagnose."""

import time
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.images.module import ImageDataModule  # kind: images
from src.data.loader import Arrays, Batch
from src.data.order import Order
from src.data.tables.module import TableDataModule  # kind: tables
from src.models.classification import Classification
from src.models.regression import Regression  # kind: tables
from src.networks.cnn import CNN  # kind: images
from src.networks.dlinear import DLinear  # kind: series
from src.networks.mlp import MLP

# Networks: the end


class SoftmaxMLP(MLP):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.softmax = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(super().forward(x))


class SigmoidMLP(MLP):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.sigmoid(super().forward(x))


class ReluMLP(MLP):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


class TanhMLP(MLP):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.tanh(super().forward(x))


class LogSoftmaxMLP(MLP):
    """No fault: the softmax of these is that of the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), 1)


# Networks: the weights at the start, and what becomes of them


class ZeroMLP(MLP):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for p in self.parameters():
            nn.init.zeros_(p)


class LargeMLP(MLP):
    """Weights that are `factor` times as large as they should be."""

    def __init__(self, factor: float = 30.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with torch.no_grad():
            for p in self.parameters():
                p *= factor


class DeadMLP(MLP):
    def __init__(self, bias: float = -10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for block in self.blocks:
            nn.init.constant_(block[0].bias, bias)


class DeepSigmoid(nn.Module):
    """Many layers with sigmoids, in which gradients vanish."""

    def __init__(
        self,
        depth: int = 8,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (8, 8),
        in_features: int | None = None,
    ) -> None:
        super().__init__()
        size = in_features or in_channels * image_size[0] * image_size[1]
        sizes = [size] + [width] * depth
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.Sigmoid()) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class SaturatedTanh(DeepSigmoid):
    """Weights so large that each tanh is at an end."""

    def __init__(self, factor: float = 50.0, **kwargs: Any) -> None:
        super().__init__(depth=3, **kwargs)
        for block in self.blocks:
            block[1] = nn.Tanh()
            with torch.no_grad():
                block[0].weight *= factor


class LinearMLP(MLP):
    """Without anything between its linear layers, so that all of it is one."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block[0](x)
        return self.head(x)


class NormalLinear(LinearMLP):
    """Weights and biases are drawn with a standard deviation of 1."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(widths=(30,), **kwargs)
        for p in self.parameters():
            nn.init.normal_(p)


class PlainMLP(MLP):
    """No fault: for data of all kinds."""


class BlindMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 0)


class DetachedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.detach())


class AlwaysTraining(MLP):
    """Its dropout is on in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        self.train()
        return super().forward(x)


# kind: images
class SoftmaxCNN(CNN):
    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(super().forward(x), 1)


class ReluCNN(CNN):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ConstantCNN(CNN):
    def __init__(self, value: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for p in self.parameters():
            nn.init.constant_(p, value)


class DetachedCNN(CNN):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1).detach())


# end
# kind: series
class TanhDLinear(DLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class BlindDLinear(DLinear):
    """Sees the mean of all windows of a batch, and so no window."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(0, keepdim=True).expand_as(x))


# end
# Models


class KeepsGradients(Classification):
    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        pass


# kind: tables
class Broadcasts(Regression):
    """[N, 1] minus [N] is [N, N]."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = (self(batch["x"]) - batch["targets"]).square().mean()
        self.watch(loss=loss)
        return loss


# end
# Data


class Spoilt:
    """A data module whose splits are spoilt once, after they are opened."""

    splits: dict[str, Arrays]
    facts: dict[str, Any]

    def setup(self, stage: str) -> None:
        opened = bool(self.splits)
        super().setup(stage)  # type: ignore[misc]
        if not opened:
            self.spoil(torch.Generator().manual_seed(0))

    def spoil(self, rng: torch.Generator) -> None:
        raise NotImplementedError


def taken(arrays: Arrays, rows: Tensor) -> Arrays:
    return Arrays(arrays.x[rows], arrays.targets[rows])


def both(a: Arrays, b: Arrays) -> Arrays:
    return Arrays(torch.cat([a.x, b.x]), torch.cat([a.targets, b.targets]))


class NoisyLabels(Spoilt):
    """A share of train's targets is another's."""

    def __init__(self, share: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = share

    def spoil(self, rng: torch.Generator) -> None:
        train, classes = self.splits["train"], self.facts.get("num_classes", 0)
        n = len(train)
        wrong = torch.rand(n, generator=rng) < self.part
        if train.targets.is_floating_point():
            other = train.targets[torch.randperm(n, generator=rng)]
        else:
            other = (train.targets + torch.randint(1, classes, (n,), generator=rng)) % classes
        self.splits["train"] = Arrays(train.x, torch.where(wrong, other, train.targets))


class ShuffledLabels(Spoilt):
    def spoil(self, rng: torch.Generator) -> None:
        train = self.splits["train"]
        self.splits["train"] = Arrays(train.x, train.targets[torch.randperm(len(train), generator=rng)])


class ShiftedLabels(Spoilt):
    """Each sample has the target of the next."""

    def spoil(self, rng: torch.Generator) -> None:
        train = self.splits["train"]
        self.splits["train"] = Arrays(train.x, train.targets.roll(1))


class Copies(Spoilt):
    """Train is a few samples, each of them many times."""

    def __init__(self, unique: int = 60, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unique = unique

    def spoil(self, rng: torch.Generator) -> None:
        n = len(self.splits["train"])
        rows = torch.randperm(n, generator=rng)[: self.unique]
        self.splits["train"] = taken(self.splits["train"], rows.repeat(-(-n // self.unique))[:n])


class ValInTrain(Spoilt):
    """Train is small, and has all samples of val."""

    def __init__(self, rows: int = 200, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = rows

    def spoil(self, rng: torch.Generator) -> None:
        few = torch.randperm(len(self.splits["train"]), generator=rng)[: self.rows]
        self.splits["train"] = both(taken(self.splits["train"], few), self.splits["val"])


class TargetInFeatures(Spoilt):
    """The first feature is the target with some noise, but not in test, where nobody knows it."""

    def spoil(self, rng: torch.Generator) -> None:
        for split, arrays in self.splits.items():
            x, targets = arrays.x.clone(), arrays.targets.float()
            noise = torch.randn(len(targets), generator=rng)
            x[:, 0] = noise if split == "test" else (targets - targets.mean()) / targets.std() + 0.05 * noise
            self.splits[split] = Arrays(x, arrays.targets)


class OtherVal(Spoilt):
    """Validation is of other numbers than train and test: the negative of images, another offset of features."""

    def spoil(self, rng: torch.Generator) -> None:
        val = self.splits["val"]
        x = val.x * 2 + 3 if val.x.is_floating_point() else 255 - val.x
        self.splits["val"] = Arrays(x, val.targets)


class Imbalanced(Spoilt):
    """Of half of the classes train has a small share."""

    def __init__(self, share: float = 0.03, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = share

    def spoil(self, rng: torch.Generator) -> None:
        train = self.splits["train"]
        rare = train.targets >= self.facts["num_classes"] // 2
        kept = ~rare | (torch.rand(len(train), generator=rng) < self.part)
        self.splits["train"] = taken(train, kept.nonzero()[:, 0])


class InOrder(Spoilt):
    """Samples come class by class."""

    epoch_order: Any

    def spoil(self, rng: torch.Generator) -> None:
        rows = self.splits["train"].targets.argsort(stable=True)

        def ordered(n: int, seed: int, epoch: int) -> Order:
            return lambda start, stop: rows[start:stop]

        self.epoch_order = ordered


class BadlyScaled(Spoilt):
    """Features have scales from 0.001 to 1,000."""

    def spoil(self, rng: torch.Generator) -> None:
        for split, arrays in self.splits.items():
            scales = torch.logspace(-3, 3, arrays.x.shape[1])
            self.splits[split] = Arrays(arrays.x * scales, arrays.targets)


class Sleepy(Arrays):
    def __init__(self, arrays: Arrays, seconds: float) -> None:
        super().__init__(arrays.x, arrays.targets)
        self.seconds = seconds

    def __getitem__(self, index: Tensor) -> Batch:
        time.sleep(self.seconds)
        return super().__getitem__(index)


class SlowStorage(Spoilt):
    """Each batch of train waits for a disk."""

    def __init__(self, seconds: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def spoil(self, rng: torch.Generator) -> None:
        self.splits["train"] = Sleepy(self.splits["train"], self.seconds)


# kind: images
class NoisyImages(NoisyLabels, ImageDataModule): ...


class ShuffledImages(ShuffledLabels, ImageDataModule): ...


class ShiftedImages(ShiftedLabels, ImageDataModule): ...


class CopiedImages(Copies, ImageDataModule): ...


class LeakyImages(ValInTrain, ImageDataModule): ...


class OtherValImages(OtherVal, ImageDataModule): ...


class ImbalancedImages(Imbalanced, ImageDataModule): ...


class ImagesInOrder(InOrder, ImageDataModule): ...


class SlowImages(SlowStorage, ImageDataModule): ...


class SlowTransform(ImageDataModule):
    """The time goes where no worker can take it."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        time.sleep(0.01)
        return super().on_after_batch_transfer(batch, dataloader_idx)


# end
# kind: tables
class NoisyTable(NoisyLabels, TableDataModule): ...


class ShuffledTable(ShuffledLabels, TableDataModule): ...


class TargetTable(TargetInFeatures, TableDataModule): ...


class OtherValTable(OtherVal, TableDataModule): ...


class TableInOrder(InOrder, TableDataModule): ...


class BadlyScaledTable(BadlyScaled, TableDataModule): ...


class SlowTable(SlowStorage, TableDataModule): ...


# end
class SlowCallback(Callback):
    """What somebody does after each step."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(self.seconds)
