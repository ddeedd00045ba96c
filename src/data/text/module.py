"""Text: read, cleaned, split, made tokens and packed once; taken by the batch from a memory map."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from src.data import cache
from src.data.loader import Batch
from src.data.module import State
from src.data.order import Order
from src.data.prepared import PreparedDataModule
from src.data.report import Cleaning
from src.data.text import pictures, report
from src.data.text.reading import clean, read, source_files, topics
from src.data.text.splits import divide
from src.data.text.tokens import decode, encode, make_tokenizer, vocabulary_size
from src.data.text.windows import Windows, moved
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TextDataModule(PreparedDataModule):
    """Text for language models; a sample is a window of tokens.

    Args:
        files: text files, or folders of .txt, .md, .rst and .py files; by default the language reference that ships
            with Python (`pydoc_data.topics`), which needs no download and is the same for one version of Python.
        tokenizer: `bytes`, `characters`, or `bpe`, which is trained on the train split alone.
        vocab_size: tokens of `bpe`.
        seq_len: tokens of a window.
        split_by: `position` cuts the joined text, `document` deals whole documents out by their hash.
        val_frac: share of the text held out for validation.
        test_frac: share of the text held out for testing; at 0 the validation text is the test text too.
    """

    provides = ("vocab_size", "seq_len")  # facts, which no config states
    sources = ("files",)

    def __init__(
        self,
        files: list[str] | None = None,
        tokenizer: Literal["bytes", "characters", "bpe"] = "characters",
        vocab_size: int = 1024,
        seq_len: int = 64,
        split_by: Literal["position", "document"] = "position",
        val_frac: float = 0.1,
        test_frac: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (val_frac > 0 and test_frac >= 0 and val_frac + test_frac < 1):
            raise ConfigError(f"data.val_frac, data.test_frac: {val_frac}, {test_frac} leave no train or val split")
        if seq_len < 2:  # at 1, evaluation's stride could not be told from training's
            raise ConfigError(f"data.seq_len: {seq_len} is less than 2")
        if tokenizer == "bpe" and vocab_size < 257:
            raise ConfigError(f"data.vocab_size: {vocab_size} -> bpe needs the 256 bytes and at least one merge")
        self.files, self.tokenizer, self.vocab_size, self.seq_len = files, tokenizer, vocab_size, seq_len
        self.split_by, self.fractions = split_by, (val_frac, test_frac)
        self.found: tuple[list[Path], list[Path]] = ([], [])  # texts, and what lies between them

    def prepare_data(self) -> None:
        if self.files is None:
            rank_zero_print("data.files is not given: the text is the language reference that ships with Python.")
        super().prepare_data()

    def depends_on(self) -> tuple[dict[str, Any], list[Path]]:
        options = {name: getattr(self, name) for name in ("tokenizer", "vocab_size", "split_by", "fractions")}
        options["version"] = 4  # of how text is made tokens
        if self.files is None:
            return options | {"topics": hashlib.sha256("".join(topics().values()).encode()).hexdigest()}, []
        self.found = source_files(self.files)
        return options | {"others": len(self.found[1])}, self.found[0]

    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        texts = topics() if self.files is None else read(*self.found, cleaning)
        cleaning.came_in = cleaning.came_in or len(texts)
        documents, num_control = clean(texts, cleaning)
        figures: dict[str, Any] = {"documents": len(documents), "control_characters": num_control}
        if fitted:
            parts, tokenizer = {"test": "\n".join(documents)}, fitted["statistics"]["tokenizer"]
        else:
            parts = divide(documents, self.split_by, *self.fractions)
            tokenizer = make_tokenizer(self.tokenizer, parts, self.vocab_size)
        size = vocabulary_size(tokenizer)
        tokens = {split: encode(tokenizer, text) for split, text in parts.items()}
        figures |= {"tokenizer": tokenizer, "vocab_size": size}
        return rows(tokens, size), figures | report.figures(parts, tokens, has_test=bool(fitted or self.fractions[1]))

    def open(self, split: str, read: Callable[[str], Tensor]) -> Windows:
        return Windows(read("tokens"), self.seq_len, stride=1 if split == "train" else self.seq_len)

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not len(self.splits["train"]) and not self.fitted:
            raise DataError(f"train has {self.report['train']['tokens']} tokens -> lower data.seq_len {self.seq_len}")
        facts = {"vocab_size": self.report["vocab_size"], "seq_len": self.seq_len}
        return facts, {"tokenizer": self.report.pop("tokenizer")}  # in checkpoints, not in data_report.json

    def size(self, split: str) -> str:
        return f"{self.report[split]['bytes']:,} bytes of text"

    def bytes_per_token(self, split: str) -> float:
        return self.report[split]["bytes_per_token"]

    def picture(self, batch: Batch) -> "Figure":
        return pictures.text([decode(self.statistics["tokenizer"], row.tolist()) for row in batch["x"].cpu()[:16]])

    def epoch_order(self) -> Callable[[int, int, int], Order]:
        return partial(moved, self.seq_len)


def rows(tokens: dict[str, np.ndarray], vocab_size: int) -> cache.Splits:
    """The tokens of each split, after the one before them as context; the first ones of a held-out text have none."""
    dtype = next(d for d in (np.uint8, np.uint16, np.uint32) if vocab_size - 1 <= np.iinfo(d).max)
    out, before = {}, next(iter(tokens.values()))[:1]
    for split, part in tokens.items():
        row = part if split == "train" else np.concatenate([before, part])
        out[split], before = {"tokens": row.astype(dtype)}, part[-1:]
    return out
