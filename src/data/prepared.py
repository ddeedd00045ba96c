"""Data that is cleaned and packed once, and how a trained model takes it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from src.data import cache
from src.data.module import DataModule, State
from src.data.report import SPLITS, Cleaning
from src.run.errors import DataError
from src.run.terminal import rank_zero_print


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
        """The arrays of each split, and figures of each for the report.

        Args:
            cleaning: takes down what is left out.
            fitted: None for the splits of training; else all is `test`, in terms of what this was fitted on.
        """

    @abstractmethod
    def open(self, split: str, read: Callable[[str], Tensor]) -> Any:
        """The batches of a split, as Arrays give them, from its prepared arrays by their names."""

    @abstractmethod
    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The facts and the statistics of the opened splits."""

    def prepare_data(self) -> None:
        self.prepare()

    def prepare(self) -> Path:
        """The folder of the prepared data, built by whoever comes first."""
        if self.folder is None:
            options, files = self.depends_on()
            name = f"{type(self).__name__}-{cache.fingerprint({**options, 'invalid': self.invalid}, files)}"
            self.folder = self.as_fitted(name, self.fitted) if self.fitted else self.built(name)
        return self.folder

    def as_fitted(self, name: str, fitted: State) -> Path:
        """The data as a trained model takes it."""
        with suppress(DataError):  # what cannot be divided, or lacks a class, is other data
            folder = self.built(name)
            now, before = cache.content(folder), fitted["content"]
            if all(now[file] == before.get(file) for file in now if file.startswith("train_")):
                return folder
        return self.built(f"{name}-{cache.fingerprint(fitted)}", fitted)

    def built(self, name: str, fitted: State | None = None) -> Path:
        def build() -> cache.Prepared:
            cleaning = Cleaning(self.invalid)
            arrays, figures = self.build(cleaning, fitted)
            cleaning.check()
            if fitted:
                figures |= {split: {"same_as": "test", **figures["test"]} for split in SPLITS}
            return arrays, figures | cleaning.report()

        return cache.prepare(self.cache_dir, name, build)

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        folder = self.prepare()
        self.report, self.content = cache.report(folder), cache.content(folder)
        for split in SPLITS:
            self.splits[split] = self.open(split, partial(cache.read, folder, self.stored_as(split)))
        self.facts, self.statistics = self.measure()
        if self.fitted:
            self.facts, self.statistics = self.fitted["facts"], self.fitted["statistics"]
            if self.content != self.fitted["content"]:
                rank_zero_print(f"Other data than the model was trained on: {self.num_samples['test']:,} samples.")

    def stored_as(self, split: str) -> str:
        """The split whose prepared arrays are those of this one, too."""
        return self.report[split].get("same_as", split)

    def adopt(self, state: State) -> None:
        if self.fitted is None:  # else `setup` has done it
            self.fitted, self.folder, self.splits = state, None, {}
            self.setup(str(self.trainer.state.fn) if self.trainer else "test")
        super().adopt(state)
