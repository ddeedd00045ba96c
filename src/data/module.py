"""What all data modules share: the batch-size contract, the loaders, and what a run must know of its data."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.order import EvalOrder, TrainOrder
from src.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Tensor]  # x, targets, and index: the samples' places in their split, -1 for padding


class Arrays(Dataset):
    """One split in memory or memory-mapped. `arrays[index]` takes a whole batch at once."""

    def __init__(self, x: Tensor, targets: Tensor) -> None:
        self.x, self.targets = x, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> Batch:
        rows = index.clamp(min=0)
        return {"x": self.x[rows], "targets": self.targets[rows], "index": index}


class Loader:
    """Batches in the order of index tensors, fetched in this process or by workers."""

    def __init__(self, arrays: Dataset, order: TrainOrder | EvalOrder, num_workers: int = 0) -> None:
        self.arrays, self.order, self.num_workers = arrays, order, num_workers
        self.workers: DataLoader | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            for index in self.order:
                yield self.arrays[index]
            return
        self.workers = self.workers or DataLoader(
            self.arrays,
            sampler=self.order,  # with batch_size=None a "sample" is whatever an item of the sampler gives
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=True,
            generator=torch.Generator(),  # without one, each new iterator would draw from torch's own generator
        )
        yield from self.workers

    # The order follows from (seed, epoch, step), so there is nothing to save; having these two methods tells
    # Lightning that this loader goes on in mid-epoch.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def as_it_is(batch: Any) -> Any:
    return batch


class DataModule(LightningDataModule):
    """Base of the data modules.

    A subclass sets `splits` (split -> Arrays), `facts` (what the network must know: num_classes, in_channels, ...) and
    `statistics` (fitted on train alone) in `setup`, and transforms whole batches in `on_after_batch_transfer`.

    Args:
        batch_size: samples of one optimizer step, over all devices.
        micro_batch_size: samples that one device takes at once; by default the batch size over the devices.
            Gradients are accumulated until a batch is full.
        num_workers: processes that fetch batches; 0 fetches in the training process, which is fastest for data
            that is in memory or memory-mapped.
        seed: of order and augmentation; follows `seed_everything`.
        cache_dir: folder of the prepared data.
    """

    def __init__(
        self,
        batch_size: int = 128,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str = ".cache",
    ) -> None:
        super().__init__()
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.num_workers, self.seed, self.cache_dir = num_workers, seed, Path(cache_dir)
        self.predict_split = "test"
        self.splits: dict[str, Arrays] = {}
        self.facts: dict[str, Any] = {}
        self.statistics: dict[str, Any] = {}
        self.report: dict[str, Any] = {}
        self.fitted: dict[str, Any] | None = None  # the state of a checkpoint, for `setup` to adopt
        if batch_size < 1:
            raise ConfigError(f"data.batch_size: {batch_size} is less than 1")
        if num_workers < 0:
            raise ConfigError(f"data.num_workers: {num_workers} is less than 0")

    def divide_batch(self, world_size: int) -> int:
        """Settle `micro_batch_size` for so many devices; gives the number of micro-batches of one optimizer step.

        Raises:
            ConfigError: the batch cannot be divided so.
        """
        if self.batch_size % world_size:
            near = [n for n in range(self.batch_size, self.batch_size + world_size) if n % world_size == 0]
            low = self.batch_size // world_size * world_size
            sizes = [n for n in (low, *near) if n]
            raise ConfigError(f"data.batch_size: {self.batch_size} over {world_size} devices -> take one of {sizes}")
        share = self.batch_size // world_size
        micro = self.micro_batch_size or share
        if micro < 1 or share % micro:
            sizes = [n for n in range(1, share + 1) if share % n == 0]
            raise ConfigError(f"data.micro_batch_size: {micro} does not divide {share} -> take one of {sizes}")
        self.micro_batch_size = micro
        return share // micro

    @property
    def world(self) -> tuple[int, int]:
        """Rank and number of the processes that share the data."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def position(self) -> tuple[int, int]:
        """Epoch and micro-batch that training has come to; Lightning's loops hold them, also after a restart."""
        if not self.trainer:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.completed

    def check_sizes(self) -> None:
        """Raise DataError where a split is empty or training data does not fill one batch."""
        for split, arrays in self.splits.items():
            if not len(arrays):
                raise DataError(f"the {split} split is empty -> give it samples")
        if len(self.splits["train"]) < self.batch_size:
            raise DataError(
                f"train has {len(self.splits['train'])} samples, fewer than one batch -> "
                f"lower data.batch_size from {self.batch_size}"
            )

    def train_dataloader(self) -> Loader:
        rank, world_size = self.world
        self.divide_batch(world_size)
        assert self.micro_batch_size is not None
        arrays = self.splits["train"]
        order = TrainOrder(
            len(arrays), self.batch_size, self.micro_batch_size, self.seed, self.position, rank, world_size
        )
        return Loader(arrays, order, self.num_workers)

    def eval_loader(self, split: str) -> Loader:
        rank, world_size = self.world
        self.divide_batch(world_size)
        assert self.micro_batch_size is not None
        return Loader(self.splits[split], EvalOrder(len(self.splits[split]), self.micro_batch_size, rank, world_size))

    def val_dataloader(self) -> Loader:
        return self.eval_loader("val")

    def test_dataloader(self) -> Loader:
        return self.eval_loader("test")

    def predict_dataloader(self) -> Loader:
        return self.eval_loader(self.predict_split)

    def picture(self, batch: Batch) -> "Figure | None":
        """Samples as the network gets them, for `samples.png`."""
        return None

    def sample_names(self, split: str) -> list[str]:
        """The files of a split's samples, if each is a file."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"facts": self.facts, "statistics": self.statistics, "num_samples": self.num_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to train on with other data; evaluation takes other data, with the checkpoint's statistics.

        Raises:
            DataError: facts, statistics or sizes differ from those of the checkpoint.
        """
        if self.trainer and self.trainer.state.fn != "fit":
            self.adopt(state)
            return
        for name, now in self.state_dict().items():
            if state[name] != now:
                before, after = (str(value)[:100] for value in (state[name], now))
                raise DataError(f"the data has changed since this run began: {name} was {before}, now {after}")

    def adopt(self, state: dict[str, Any]) -> None:
        """Take on what was fitted on the training data of a checkpoint, in place of what was fitted on this data."""
        self.facts, self.statistics = state["facts"], state["statistics"]

    @property
    def num_samples(self) -> dict[str, int]:
        return {split: len(arrays) for split, arrays in self.splits.items()}
