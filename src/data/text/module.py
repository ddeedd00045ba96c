"""Text: read, cleaned, split, made tokens and packed once; taken by the batch from a memory map."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from src.data import cache
from src.data.module import Batch, DataModule, State
from src.data.order import Order
from src.data.report import SPLITS, Cleaning, stored_as
from src.data.text import pictures
from src.data.text.reading import clean, read, source_files, topics
from src.data.text.report import text_shift, text_split
from src.data.text.splits import divide, num_cut
from src.data.text.tokens import decode, encode, make_tokenizer, vocabulary_size
from src.data.text.windows import Windows, moved
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYED = ("tokenizer", "vocab_size", "split_by", "fractions", "invalid", "max_skipped_frac")  # change the prepared data


class TextDataModule(DataModule):
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
        invalid: whether a file that is not UTF-8 is an `error`, or left out (`skip`) and listed in the report.
        max_skipped_frac: the largest share of files that may be left out.
    """

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
        invalid: Literal["error", "skip"] = "error",
        max_skipped_frac: float = 0.05,
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
        self.invalid, self.max_skipped_frac = invalid, max_skipped_frac

    def prepare_data(self) -> None:
        if self.files is None:
            rank_zero_print("data.files is not given: the text is the language reference that ships with Python.")
        self.prepare()

    def prepare(self) -> Path:
        if self.folder is None:
            paths, others = source_files(self.files) if self.files is not None else ([], [])
            options = {name: getattr(self, name) for name in KEYED} | {"version": 4, "others": len(others)}
            if self.files is None:
                options["topics"] = hashlib.sha256("".join(topics().values()).encode()).hexdigest()
            name = f"text-{cache.fingerprint(options, paths)}"
            self.folder = self.prepared(name, partial(self.build, paths, others))
        return self.folder

    def build(self, paths: list[Path], others: list[Path], fitted: State | None) -> cache.Prepared:
        """Train, val and test; of other text than a trained model's all of it, in the model's tokens, as `test`."""
        cleaning = Cleaning(self.invalid, self.max_skipped_frac)
        texts = read(paths, others, cleaning) if self.files is not None else topics()
        documents, num_control = clean(texts, cleaning)
        report: dict[str, Any] = {"documents": len(documents), "control_characters": num_control}
        if fitted:
            parts, tokenizer = {"test": "\n".join(documents)}, fitted["statistics"]["tokenizer"]
        else:
            parts = divide(documents, self.split_by, *self.fractions)
            tokenizer = make_tokenizer(self.tokenizer, parts, self.vocab_size)
            if self.split_by == "position":
                report["documents_in_two_splits"] = num_cut(documents, parts)
        size = vocabulary_size(tokenizer)
        if not fitted and self.tokenizer == "bpe" and size < self.vocab_size:
            cleaning.notes.append(f"the text gives bpe {size:,} tokens, not {self.vocab_size:,}")
        tokens = {split: encode(tokenizer, text) for split, text in parts.items()}
        came_in = len(texts) + len(cleaning.skipped) + len(others)
        report |= {"tokenizer": tokenizer, "vocab_size": size, **cleaning.report(came_in)}
        return rows(tokens, size), report | self.figures(parts, tokens)

    def figures(self, parts: dict[str, str], tokens: dict[str, np.ndarray]) -> dict[str, Any]:
        """The data report of each split, and how far val and test are from train."""
        out: dict[str, Any] = {split: text_split(parts[split], tokens[split]) for split in parts}
        if "train" not in parts:
            return {split: {"same_as": "test", **out["test"]} for split in SPLITS}
        if not self.fractions[1]:
            out["test"] = {"same_as": "val", **out["val"]}
        held_out = {split: text_shift(parts, tokens, split) for split in ("val", "test") if parts[split]}
        return out | {"shift": {"test": held_out.get("test", held_out.get("val", {})), **held_out}}

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        folder = self.prepare()
        self.report, self.content = cache.report(folder), cache.content(folder)
        for split in SPLITS:
            row = cache.read(folder, stored_as(self.report, split), "tokens")
            stride = 1 if split == "train" else self.seq_len
            self.splits[split] = Windows(row, self.seq_len, stride)  # type: ignore[assignment]
        self.facts = {"vocab_size": self.report["vocab_size"], "seq_len": self.seq_len}
        self.statistics = {"tokenizer": self.report["tokenizer"]}
        if self.fitted is None and not len(self.splits["train"]):
            raise DataError(f"train has {self.report['train']['tokens']} tokens -> lower data.seq_len {self.seq_len}")
        if self.fitted:
            self.facts = self.fitted["facts"]
            if "same_as" in self.report["train"]:
                rank_zero_print("Other text than the model was trained on: all of it is measured.")

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
