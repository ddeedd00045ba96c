"""Text: read, cleaned, split, made tokens and packed once; taken by the batch from a memory map."""

import copy
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data import cache
from src.data.loader import Batch
from src.data.module import PreparedDataModule, State
from src.data.order import Order, key, shuffled
from src.data.report import Cleaning
from src.data.text import report
from src.data.text.reading import CONTROL, clean, read, source_files, topics
from src.data.text.tokens import decode, encode, make_tokenizer, vocabulary_size
from src.run.errors import ConfigError, DataError
from src.run.figures import figure
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
        val_frac: share of the joined text held out for validation, after what is trained on.
        test_frac: share held out for testing, at its end; at 0 the validation text is the test text too.
    """

    provides = ("vocab_size", "seq_len")  # facts, which no config states
    varies = ("seq_len",)  # shorter ones, and for networks without positions any
    sources = ("files",)

    def __init__(
        self,
        files: list[str] | None = None,
        tokenizer: Literal["bytes", "characters", "bpe"] = "characters",
        vocab_size: int = 1024,
        seq_len: int = 64,
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
        self.fractions = (val_frac, test_frac)
        self.epoch_order = partial(moved, seq_len)
        self.found: list[Path] = []
        self.others: list[Path] = []  # what lies between them and is no text by its name

    def depends_on(self) -> tuple[dict[str, Any], list[Path]]:
        options = {name: getattr(self, name) for name in ("tokenizer", "vocab_size", "fractions")}
        options["version"] = 4  # of how text is made tokens
        if self.files is None:
            rank_zero_print("data.files is not given: the text is the language reference that ships with Python.")
            return options | {"topics": hashlib.sha256("".join(topics().values()).encode()).hexdigest()}, []
        self.found, self.others = source_files(self.files)
        return options | {"others": len(self.others)}, self.found

    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        documents = clean(topics() if self.files is None else read(self.found, cleaning), cleaning)
        cleaning.note_others(self.others)
        text = "\n".join(documents)
        if fitted:
            parts, tokenizer = {"test": text}, fitted["statistics"]["tokenizer"]
        else:
            val_frac, test_frac = self.fractions
            a, b = int(len(text) * (1 - val_frac - test_frac)), int(len(text) * (1 - test_frac))
            parts = {"train": text[:a], "val": text[a:b], "test": text[b:]}
            tokenizer = make_tokenizer(self.tokenizer, parts["train"], self.vocab_size)
        tokens = {split: encode(tokenizer, part) for split, part in parts.items()}
        size = vocabulary_size(tokenizer)
        figures = {"documents": len(documents), "tokenizer": tokenizer, "vocab_size": size}
        return rows(tokens, size), figures | report.figures(parts, tokens)

    def open(self, split: str, read: Callable[[str], Tensor]) -> "Windows":
        return Windows(read("tokens"), self.seq_len, stride=1 if split == "train" else self.seq_len)

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not len(self.splits["train"]) and not self.fitted:
            raise DataError(f"train has {self.report['train']['tokens']} tokens -> lower data.seq_len {self.seq_len}")
        facts = {"vocab_size": self.report["vocab_size"], "seq_len": self.seq_len}
        return facts, {"tokenizer": self.report.pop("tokenizer")}  # in checkpoints, not in data_report.json

    def inputs(self) -> dict[str, dict[str, Any]]:
        what = "ids: of bytes in UTF-8, of the characters in this order, or of the JSON of the library tokenizers; "
        what += "shorter texts are filled up at their end, where answers mean nothing"
        how = {"meaning": what, "tokenizer": self.statistics["tokenizer"]}
        return {"tokens": {"dtype": "int64", "shape": ["N", self.facts["seq_len"]], **how}}

    def samples_of(self, raw: Any, cleaning: Cleaning) -> Iterator[tuple[dict[str, Any], Batch]]:
        """A text, each of a list, each file of a `Path`, or each line of standard input (`Path("-")`)."""
        if isinstance(raw, Path) and str(raw) != "-":
            raw = read(source_files([str(raw)])[0], cleaning)
        elif not isinstance(raw, (str, Path, list)):
            raise DataError(f"{type(raw).__name__} is no text -> give one, a list of them, or the Path of a file")
        lines = sys.stdin if isinstance(raw, Path) else [raw] if isinstance(raw, str) else raw
        for name, text in raw.items() if isinstance(raw, dict) else enumerate(lines):
            cleaning.came_in += 1
            tokens = torch.from_numpy(encode(self.statistics["tokenizer"], CONTROL.sub("", text).rstrip("\n")))
            if not len(tokens):
                cleaning.skip("", str(name), "empty", "")
                continue
            size = min(self.facts["seq_len"], len(tokens))
            windows = Windows(tokens, size, size)
            batch = windows[torch.arange(max(1, len(windows)))]
            yield {"text": [str(name)]}, batch | {"prompt": tokens[None, -size:]}

    def token(self, number: int) -> str:
        return decode(self.statistics["tokenizer"], [number])

    def bytes_per_token(self, split: str) -> float:
        return self.report[split]["bytes_per_token"]

    def picture(self, batch: Batch) -> "Figure":
        """Each sample as one line; line ends are shown as ⏎."""
        x = batch["x"][:16].tolist()
        fig = figure(10, 0.3 * len(x) + 0.2)
        for i, tokens in enumerate(x):
            line, y = decode(self.statistics["tokenizer"], tokens).replace("\n", "⏎")[:110], 1 - (i + 0.5) / len(x)
            fig.text(0.01, y, line, family="monospace", size=8, va="center", parse_math=False)
        return fig


def rows(tokens: dict[str, np.ndarray], vocab_size: int) -> cache.Splits:
    """The tokens of each split, after the one before them as context; the first ones of a held-out text have none."""
    dtype = next(d for d in (np.uint8, np.uint16, np.uint32) if vocab_size - 1 <= np.iinfo(d).max)
    out, before = {}, next(iter(tokens.values()))[:1]
    for split, part in tokens.items():
        row = part if split == "train" else np.concatenate([before, part])
        out[split], before = {"tokens": row.astype(dtype)}, part[-1:]
    return out


class Windows(Dataset):
    """Windows of `seq_len` targets in a row of tokens, whose first one is context only; `stride` is what their first
    tokens are apart. The last window is padded, its targets by -100, which cross_entropy ignores."""

    def __init__(self, tokens: Tensor, seq_len: int, stride: int) -> None:
        signed = {torch.uint16: torch.int16, torch.uint32: torch.int32}.get(tokens.dtype, tokens.dtype)
        self.tokens, self.largest = tokens.view(signed), torch.iinfo(tokens.dtype).max  # few devices index the others
        self.seq_len, self.stride = seq_len, stride

    def __len__(self) -> int:
        targets = len(self.tokens) - 1
        if self.stride == 1:  # training windows are moved by up to seq_len - 1 tokens
            return max(0, (targets - self.seq_len + 1) // self.seq_len)
        return -(-targets // self.seq_len)

    def __getitem__(self, index: Tensor) -> Batch:
        at = index.clamp(min=0)[:, None] * self.stride + torch.arange(self.seq_len + 1, device=index.device)
        last = len(self.tokens) - 1
        rows = self.tokens[at.clamp(max=last)].long() & self.largest
        targets = rows[:, 1:].masked_fill((at[:, 1:] > last) | (index < 0)[:, None], -100)
        return {"x": rows[:, :-1], "targets": targets, "index": index}

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Windows":
        out = copy.copy(self)
        out.tokens = move(self.tokens)
        return out


def moved(seq_len: int, n: int, seed: int, epoch: int) -> Order:
    """The epoch's order of n windows, as their first tokens; in each epoch they begin elsewhere."""
    order, offset = shuffled(n, seed, epoch), key(seed, epoch, 1) % seq_len
    return lambda start, stop: order(start, stop) * seq_len + offset
