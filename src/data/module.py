"""What all data modules share: the batch-size contract, the loaders, and what a run must know of its data."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import DataLoader, Dataset, get_worker_info

from src.data.order import EvalOrder, TrainOrder
from src.errors import ConfigError, DataError, EnvironmentFault, KnownError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 5  # samples that an error names
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


class Watched(Dataset):
    """Arrays that note which samples each worker takes, where the main process sees it, and name those that fail."""

    def __init__(self, arrays: Dataset, num_workers: int) -> None:
        self.arrays = arrays
        self.at = torch.full((max(1, num_workers), SHOWN), -1).share_memory_()

    def __getitem__(self, index: Tensor) -> Batch:
        info = get_worker_info()
        worker = info.id if info else 0
        self.at[worker] = torch.nn.functional.pad(index[:SHOWN], (0, SHOWN - len(index[:SHOWN])), value=-1)
        try:
            return self.arrays[index]
        except Exception as e:
            if not info and (isinstance(e, KnownError) or out_of_memory(e)):
                raise
            text = f"{f'data worker {worker}' if info else 'the data'} failed, {self.where(worker)}: "
            if out_of_memory(e):
                raise EnvironmentFault(f"{text}out of memory -> lower data.num_workers") from e
            text += f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            raise DataError(f"{text} -> mend or leave out the bad one (--debug: where)") from e

    def where(self, worker: int) -> str:
        known = [str(n) for n in self.at[worker].tolist() if n >= 0]
        return f"last at samples {', '.join(known)}, ... of its split" if known else "at no samples yet"


class Loader:
    """Batches in the order of index tensors, fetched in this process or by workers.

    Args:
        worker_timeout_sec: how long to wait for a worker's batch.
    """

    def __init__(
        self,
        arrays: Dataset,
        order: TrainOrder | EvalOrder,
        num_workers: int = 0,
        worker_timeout_sec: float = 120.0,
    ) -> None:
        self.arrays, self.order, self.num_workers = arrays, order, num_workers
        self.worker_timeout_sec = worker_timeout_sec
        self.watched, self.received = Watched(arrays, num_workers), 0
        self.workers: DataLoader | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Raises:
        DataError: samples cannot be fetched.
        EnvironmentFault: a worker died, or gave nothing in time.
        """
        if self.num_workers == 0:
            yield from map(self.watched.__getitem__, self.order)
            return
        self.workers, self.received = self.workers or self.start_workers(), 0
        batches = iter(self.workers)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except KnownError as e:  # a worker's comes as its whole traceback
                raise type(e)(str(e).splitlines()[-1].partition(": ")[2]) from e
            except (RuntimeError, OSError, EOFError) as e:
                fault = self.lost_worker(e)
                if fault is None:
                    raise
                raise fault from e
            self.received += 1
            yield batch

    def start_workers(self) -> DataLoader:
        return DataLoader(
            self.watched,
            sampler=self.order,  # with batch_size=None a "sample" is whatever an item of the sampler gives
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=True,
            timeout=self.worker_timeout_sec,
            worker_init_fn=end_with_parent,
            generator=torch.Generator(),  # without one, each new iterator would draw from torch's own generator
        )

    def lost_worker(self, e: Exception) -> EnvironmentFault | None:
        """What torch says of a worker that died (it raises wherever the signal finds training) or timed out."""
        text = str(e)
        if self.workers is None:
            return None
        if text.startswith("DataLoader timed out"):
            worker = self.received % self.num_workers  # batch n is always fetched by worker n % num_workers
            how = f"gave nothing for {self.worker_timeout_sec:g} s, {self.watched.where(worker)}"
            return EnvironmentFault(
                f"data worker {worker} {how} -> mend that, or raise data.worker_timeout_sec; the same command goes on"
            )
        broken = isinstance(e, (ConnectionError, EOFError))  # the death of a worker while it hands over a batch
        if not broken and not text.startswith("DataLoader worker (pid"):
            return None
        processes = getattr(self.workers._iterator, "_workers", [])
        with suppress(RuntimeError):  # the signal may come only now
            for process in processes if broken else ():
                process.join(1)
        codes = {k: process.exitcode for k, process in enumerate(processes) if process.exitcode}
        if broken and not codes:
            return None
        worker, code = next(iter(codes.items()), (self.received % self.num_workers, None))
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        return EnvironmentFault(
            f"data worker {worker} {how}, {self.watched.where(worker)} -> mend that (is memory short?); "
            "the same command goes on"
        )

    # The order follows from (seed, epoch, step), so there is nothing to save; having these two methods tells
    # Lightning that this loader goes on in mid-epoch.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def as_it_is(batch: Any) -> Any:
    return batch


def out_of_memory(e: BaseException) -> bool:
    """Whether a device's memory or the host's has run out; the host's allocator says so in words."""
    return isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: can't allocate" in str(e)


def end_with_parent(worker: int) -> None:
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # Linux; elsewhere in 5 s, unless it hangs


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
        worker_timeout_sec: how long to wait for a worker's batch before the run ends; 0 waits for ever.
        auto_micro_batch: when memory runs out, halve the micro-batch and go on; the batch size stays.
    """

    def __init__(
        self,
        batch_size: int = 128,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str = ".cache",
        worker_timeout_sec: float = 120.0,
        auto_micro_batch: bool = False,
    ) -> None:
        super().__init__()
        self.worker_timeout_sec, self.auto_micro_batch = worker_timeout_sec, auto_micro_batch
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.num_workers, self.seed, self.cache_dir = num_workers, seed, Path(cache_dir)
        self.predict_split = "test"
        self.again: tuple[int, int] | None = None
        self.splits: dict[str, Arrays] = {}
        self.facts: dict[str, Any] = {}
        self.statistics: dict[str, Any] = {}
        self.report: dict[str, Any] = {}
        if batch_size < 1:
            raise ConfigError(f"data.batch_size: {batch_size} is less than 1")
        if num_workers < 0:
            raise ConfigError(f"data.num_workers: {num_workers} is less than 0")
        if worker_timeout_sec < 0:
            raise ConfigError(f"data.worker_timeout_sec: {worker_timeout_sec} is less than 0")

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
        if self.again or not self.trainer:
            return self.again or (0, 0)
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.completed

    def fetch(self, epoch: int, number: int) -> Batch:
        """A micro-batch of training once more, in this process."""
        assert self.trainer is not None
        loader: Any = self.trainer.train_dataloader
        self.again = epoch, number
        try:
            return loader.arrays[next(iter(loader.order))]
        finally:
            self.again = None

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
        return Loader(arrays, order, self.num_workers, self.worker_timeout_sec)

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

    def state_dict(self) -> dict[str, Any]:
        return {"facts": self.facts, "statistics": self.statistics, "num_samples": self.num_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to go on with other data.

        Raises:
            DataError: facts, statistics or sizes differ from those of the checkpoint.
        """
        for name, now in self.state_dict().items():
            if state[name] != now:
                before, after = (str(value)[:100] for value in (state[name], now))
                raise DataError(f"the data has changed since this run began: {name} was {before}, now {after}")

    @property
    def num_samples(self) -> dict[str, int]:
        return {split: len(arrays) for split, arrays in self.splits.items()}
