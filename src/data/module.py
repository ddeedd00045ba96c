"""What all data modules share: the batch-size contract, the loaders, data prepared once, taken by a trained model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from src.data import cache
from src.data.loader import Arrays, Batch, Loader
from src.data.order import EvalOrder, Order, TrainOrder, divided, first_epoch, indices_in, key, rest, shuffled
from src.data.placing import placed
from src.data.report import SPLITS, Cleaning, check_facts
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

State = dict[str, Any]  # of a data module in a checkpoint: facts, statistics, num_samples, content


class DataModule(LightningDataModule):
    """Base of the data modules.

    A subclass sets `splits` (split -> Arrays), `facts` (what the network must know: num_classes, in_channels, ...) and
    `statistics` (fitted on train alone) in `setup`, and transforms whole batches in `on_after_batch_transfer`.

    Args:
        batch_size: samples of one optimizer step, over all devices.
        micro_batch_size: samples that one device takes at once; by default the batch size over the devices.
            Gradients are accumulated until a batch is full.
        num_workers: processes that fetch training batches; 0 fetches in the training process, which is fastest for
            data that is in memory or memory-mapped.
        seed: of order and augmentation; follows `seed_everything`.
        cache_dir: folder of the prepared data.
        worker_timeout_sec: how long to wait for a worker's batch before the run ends; 0 waits for ever.
        on_device: keep train in the device's memory, where each batch is then gathered, by no workers. `auto` does so
            on a GPU if they are at most 2 GiB and a sixteenth of its free memory.
        without: a text file with indices of train's samples, one a line, that are not trained on.
    """

    sources: tuple[str, ...] = ()  # the arguments that say which data it is
    varies: tuple[str, ...] = ()  # facts that other data of a trained model may have otherwise

    def __init__(
        self,
        batch_size: int = 128,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str = ".cache",
        worker_timeout_sec: float = 120.0,
        on_device: bool | Literal["auto"] = "auto",
        without: str | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.num_workers, self.worker_timeout_sec, self.on_device = num_workers, worker_timeout_sec, on_device
        self.seed, self.cache_dir, self.predict_split, self.without = seed, Path(cache_dir), "test", without
        self.epoch_order: Callable[[int, int, int], Order] = shuffled  # of (number of samples, seed, epoch)
        self.splits: dict[str, Arrays] = {}
        self.facts: dict[str, Any] = {}
        self.statistics: dict[str, Any] = {}
        self.report: dict[str, Any] = {}
        self.content: dict[str, Any] = {}  # of the prepared arrays, by which other data is told from the run's own
        self.fitted: State | None = None  # of a checkpoint, for `setup` to take on
        self.indices: Tensor | None = None  # of `left_out`
        self.same_source = False  # whether it names the data that this was fitted on
        for name, least in (("batch_size", 1), ("num_workers", 0), ("worker_timeout_sec", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name}: {getattr(self, name)} is less than {least}")
        if on_device is True and num_workers:
            raise ConfigError(f"data.on_device: no workers fetch there -> leave out data.num_workers {num_workers}")

    def divide_batch(self, world_size: int) -> int:
        """Settle `micro_batch_size` for so many devices; gives the number of micro-batches of one optimizer step."""
        self.micro_batch_size, count = divided(self.batch_size, self.micro_batch_size, world_size)
        return count

    @property
    def left_out(self) -> Tensor:  # what `without` named when it was first asked for
        self.indices = indices_in(self.without, self.num_samples) if self.indices is None else self.indices
        return self.indices

    def share(self) -> tuple[int, int, int]:
        """Samples that this process takes at once, its rank, and the number of processes."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self.batch_size // world_size // self.divide_batch(world_size), rank, world_size

    def position(self) -> tuple[int, int]:
        """Epoch and micro-batch that training has come to; Lightning's loops hold them, also after a restart."""
        if not self.trainer:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.completed

    def fetch(self, epoch: int, number: int) -> Batch:
        """A micro-batch of training once more, in this process."""
        loader: Any = self.trainer.train_dataloader  # type: ignore[union-attr]
        return loader.take(next(loader.order.begin(epoch, number)))

    def check_sizes(self) -> None:
        """Raise DataError where a split is empty or training data does not fill one batch."""
        for split, arrays in self.splits.items():
            if not len(arrays):
                raise DataError(f"the {split} split is empty -> give it samples")
        if (n := len(self.splits["train"]) - len(self.left_out)) < self.batch_size:
            todo = f"lower data.batch_size from {self.batch_size}"
            raise DataError(f"train has {n} samples, fewer than one batch -> {todo}")

    def train_dataloader(self) -> Loader:
        self.check_sizes()
        arrays, (micro, rank, world_size) = self.splits["train"], self.share()
        same = bool(self.trainer and self.trainer.overfit_batches)  # type: ignore[attr-defined]
        ordered = partial(rest, self.epoch_order, self.left_out) if len(self.left_out) else self.epoch_order
        ordered, n = partial(first_epoch, ordered) if same else ordered, len(arrays) - len(self.left_out)
        order = TrainOrder(n, self.batch_size, micro, self.seed, self.position, rank, world_size, ordered)
        device = self.trainer.strategy.root_device if self.trainer and not self.num_workers else None
        arrays, device = placed(arrays, device, self.on_device)
        return Loader(arrays, order, self.num_workers, self.worker_timeout_sec, device)

    def eval_loader(self, split: str, limited_as: str | None = None) -> Loader:
        count, share = len(self.splits[split]), self.share()
        limit = getattr(self.trainer, f"limit_{limited_as or split}_batches", 1.0)
        limited = isinstance(limit, int) or limit < 1  # the first ones may all be of one class
        order = shuffled(count, self.seed, 0) if limited else torch.arange
        return Loader(self.splits[split], EvalOrder(count, *share, order))

    def val_dataloader(self) -> Loader:
        return self.eval_loader("val")

    def test_dataloader(self) -> Loader:
        return self.eval_loader("test")

    def predict_dataloader(self) -> Loader:
        return self.eval_loader(self.predict_split, "predict")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if isinstance(batch, dict) and all(isinstance(t, Tensor) for t in batch.values()):  # in a part of the time
            return {name: t.to(device, non_blocking=device.type not in ("cpu", "mps")) for name, t in batch.items()}
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return {**batch, "x": self.as_weights(batch["x"])} if batch["x"].is_floating_point() else batch

    def as_weights(self, x: Tensor) -> Tensor:
        return self.trainer.precision_plugin.convert_input(x.float()) if self.trainer else x.float()

    def views(self, x: Tensor) -> list[Tensor]:
        """What a batch x is classified by in evaluation: the mean over these."""
        return [x]

    def inputs(self) -> dict[str, dict[str, Any]]:
        """What an exported model takes: name -> dtype, shape, meaning; of words `codes`, where all others have 0."""
        raise ConfigError(f"{type(self).__name__} does not say what is raw input -> write its method inputs")

    def raw(self, split: str, index: Tensor) -> dict[str, Any]:
        return dict.fromkeys(self.inputs(), self.splits[split][index]["x"])

    def from_raw(self, raw: dict[str, Tensor]) -> Batch:
        """The batch that the network gets, by arithmetic alone; words come as codes."""
        return self.on_after_batch_transfer({"x": next(iter(raw.values()))}, 0)

    def must_take(self) -> dict[str, str]:
        """Facts without which a network cannot read x, each with what to do for networks that do not take it."""
        return {}

    def hint(self, message: str) -> str:
        """Which option of the data to change where a network or model refuses it with this message; empty if none."""
        return ""

    def picture(self, batch: Batch) -> "Figure | None":
        """Samples as the network gets them, for `samples.png`."""
        return None

    def keys(self, split: str, index: np.ndarray) -> dict[str, Any]:
        """Columns that say which samples of a split these are: index [N]."""
        return {"id": index}

    def samples_of(self, raw: Any, cleaning: Cleaning) -> Iterator[tuple[dict[str, Any], Batch]]:
        """What users have, in parts: columns that name the samples, and a batch of `x`, by what train was fitted on."""
        raise ConfigError(f"{type(self).__name__} has no samples_of -> write it, or name other data by its options")

    def pictures(self) -> dict[str, "Figure"]:
        """Figures of the data and its splits, by the names of their files."""
        return {}

    def state_dict(self) -> State:
        state = {name: getattr(self, name) for name in ("facts", "statistics", "num_samples", "content")}
        return state | {"left_out": f"{len(self.left_out)} samples ({key(*self.left_out.tolist()):08x})"}

    def load_state_dict(self, state: State) -> None:
        """Refuse to train on with other data; evaluation takes other data, with the checkpoint's statistics."""
        if self.trainer and self.trainer.state.fn != "fit":
            self.adopt(state)
            return
        for name, now in self.state_dict().items():
            if state.get(name, now) != now:
                before, after = (str(value)[:100] for value in (state[name], now))
                raise DataError(f"the data has changed since this run began: {name} was {before}, now {after}")

    def adopt(self, state: State) -> None:
        """Take on what was fitted on the training data of a checkpoint, in place of what was fitted on this data."""
        self.facts, self.statistics = state["facts"], state["statistics"]

    @property
    def num_samples(self) -> dict[str, int]:
        return {split: len(arrays) for split, arrays in self.splits.items()}


class PreparedDataModule(DataModule, ABC):
    """Base of the kinds of data. A kind says what its prepared data depends on, builds it, opens it and measures it.

    A trained model's data module has the state of the checkpoint in `fitted`. Data with the same train split is the
    model's own, and is split as it was; of other data all is measured, with what was fitted on the model's own.

    Args:
        invalid: whether a file or sample that cannot be used is an `error`, or left out (`skip`) and listed in the
            report. Duplicates are always left out of train.
    """

    def __init__(self, invalid: Literal["error", "skip"] = "error", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.invalid = invalid
        self.folder: Path | None = None  # of the prepared data

    @abstractmethod
    def depends_on(self) -> tuple[dict[str, Any], Iterable[Path]]:
        """The options and the files that make other prepared data where they change."""

    @abstractmethod
    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        """The arrays of each split, and figures of each for the report; `cleaning` takes down what is left out. Where a
        model was `fitted` on other data, all is `test`, in its terms."""

    @abstractmethod
    def open(self, split: str, read: Callable[[str], Tensor]) -> Any:
        """The batches of a split, as Arrays give them, from its prepared arrays by their names."""

    @abstractmethod
    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The facts and the statistics of the opened splits."""

    def prepare_data(self) -> None:
        """Find the folder of the prepared data, built by whoever comes first."""
        if self.folder is None:
            options, files = self.depends_on()
            name = f"{type(self).__name__}-{cache.fingerprint({**options, 'invalid': self.invalid}, files)}"
            self.folder = self.as_fitted(name, self.fitted) if self.fitted else self.built(name)

    def as_fitted(self, name: str, fitted: State) -> Path:
        """The data as a trained model takes it."""
        with suppress(DataError):  # what cannot be divided, or lacks a class, is other data
            folder, before = self.built(name), fitted["content"]
            if all(one == before.get(file) for file, one in cache.content(folder).items() if file.startswith("train_")):
                return folder
        return self.built(f"{name}-{cache.fingerprint(fitted)}", fitted)

    def built(self, name: str, fitted: State | None = None) -> Path:
        def build() -> cache.Prepared:
            cleaning = Cleaning(self.invalid)
            arrays, figures = self.build(cleaning, fitted)
            if fitted:
                figures |= {split: {"same_as": "test", **figures["test"]} for split in SPLITS}
            return arrays, figures | cleaning.report()

        return cache.prepare(self.cache_dir, name, build)

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        self.prepare_data()
        assert self.folder is not None
        self.report, self.content = cache.report(self.folder), cache.content(self.folder)
        for split in SPLITS:
            self.splits[split] = self.open(split, partial(cache.read, self.folder, self.stored_as(split)))
        self.facts, self.statistics = self.measure()
        if self.fitted:
            check_facts(self.facts, self.fitted["facts"], self.varies)
            self.facts, self.statistics = self.fitted["facts"], self.fitted["statistics"]
            if self.content != self.fitted["content"]:
                found = f"Other data than the model was trained on: {self.num_samples['test']:,} samples"
                why = "; their source is the same, but it or its splits have changed: some may be of its training"
                rank_zero_print(f"{found}{why if self.same_source else ''}.")

    def stored_as(self, split: str) -> str:
        """The split whose prepared arrays are those of this one, too."""
        return self.report[split].get("same_as", split)

    def adopt(self, state: State) -> None:
        if self.fitted is None:  # else `setup` has done it
            self.fitted, self.folder, self.splits = state, None, {}
            self.setup(str(self.trainer.state.fn) if self.trainer else "test")
        super().adopt(state)
