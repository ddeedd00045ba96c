"""Text: read, cleaned, split, made tokens and packed once; taken by the batch from a memory map."""

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data import cache
from src.data.module import Batch, DataModule
from src.data.order import Order, key, shuffled
from src.data.report import SPLITS, Cleaning
from src.data.text import pictures
from src.data.text.report import text_shift, text_split
from src.data.text.tokens import decode, encode, make_tokenizer, vocabulary_size
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".txt", ".md", ".rst", ".py")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
MAX_CONTROL_FRAC = 0.1  # of a file of text; escapes of colours, in logs, stay below it
IGNORED = -100  # cross_entropy's own mark of targets that do not count


class Windows(Dataset):
    """Windows of a row of tokens; the last one is padded, its targets by -100.

    Args:
        tokens: [tokens + 1]; the first one is context only.
        seq_len: targets of a window.
        stride: tokens from one index to the next.
    """

    def __init__(self, tokens: Tensor, seq_len: int, stride: int) -> None:
        self.tokens, self.seq_len, self.stride = tokens, seq_len, stride

    def __len__(self) -> int:
        targets = len(self.tokens) - 1
        if self.stride == 1:  # training windows are moved by up to seq_len - 1 tokens
            return max(0, (targets - self.seq_len + 1) // self.seq_len)
        return -(-targets // self.seq_len)

    def __getitem__(self, index: Tensor) -> Batch:
        at = index.clamp(min=0)[:, None] * self.stride + torch.arange(self.seq_len + 1)
        last = len(self.tokens) - 1
        rows = torch.from_numpy(self.tokens.numpy()[at.clamp(max=last).numpy()].astype(np.int64))
        targets = rows[:, 1:].masked_fill((at[:, 1:] > last) | (index < 0)[:, None], IGNORED)
        return {"x": rows[:, :-1], "targets": targets, "index": index}


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

    provides = ("vocab_size", "seq_len")  # facts, which no config states

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
        self.is_other = False  # than that of the checkpoint: all of it is then val, and test

    def prepare_data(self) -> None:
        self.prepare()

    def prepare(self) -> Path:
        paths, others = source_files(self.files) if self.files is not None else ([], [])
        names = ("tokenizer", "vocab_size", "split_by", "fractions", "invalid", "max_skipped_frac")
        options = {name: getattr(self, name) for name in names} | {"version": 3, "others": len(others)}
        options["is_other"] = self.is_other
        if self.files is None:
            options["topics"] = hashlib.sha256("".join(topics().values()).encode()).hexdigest()
        return cache.prepare(
            self.cache_dir, f"text-{cache.fingerprint(options, paths)}", lambda: self.build(paths, others)
        )

    def build(self, paths: list[Path], others: list[Path]) -> tuple[cache.Splits, dict[str, Any]]:
        cleaning = Cleaning(self.invalid, self.max_skipped_frac)
        texts = read(paths, cleaning) if self.files is not None else topics()
        came_in = len(texts) + len(cleaning.skipped)
        cleaning.check_limit(came_in)
        for path in others:
            hidden = path.suffix.lower() in SUFFIXES
            cleaning.remove("", str(path), "hidden file" if hidden else "no text by its name")
        documents, num_control = cleaned(texts, cleaning)
        cleaning.notes += [f"{num_control:,} control characters are taken out"] if num_control else []
        parts = dict.fromkeys(SPLITS, "\n".join(documents.values()))
        if not self.is_other:
            parts = divide(list(documents.values()), self.split_by, *self.fractions)
        tokenizer = make_tokenizer(self.tokenizer, parts, self.vocab_size)
        tokens = {split: encode(tokenizer, text) for split, text in parts.items()}
        size = vocabulary_size(tokenizer)
        if self.tokenizer == "bpe" and size < self.vocab_size:
            cleaning.notes.append(f"the text gives bpe {size:,} tokens, not {self.vocab_size:,}")
        dtype = next(d for d in (np.uint8, np.uint16, np.uint32) if size - 1 <= np.iinfo(d).max)
        report: dict[str, Any] = {"documents": len(documents), "control_characters": num_control}
        if self.split_by == "position":
            report["documents_in_two_splits"] = num_cut(documents.values(), parts)
        report |= {"tokenizer": tokenizer, "vocab_size": size, **cleaning.report(came_in + len(others))}
        splits, before = {}, tokens["train"][:1]
        for split, own in tokens.items():
            row = own if split == "train" else np.concatenate([before, own])
            splits[split], before = {"tokens": row.astype(dtype)}, own[-1:]
            report[split] = text_split(parts[split], own)
        if not self.fractions[1]:
            report["test"] = {"same_as": "val", **report["val"]}
        held_out = {split: text_shift(parts, tokens, split) for split in ("val", "test") if parts[split]}
        return splits, report | {"shift": {"test": held_out.get("test", held_out.get("val", {})), **held_out}}

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        try:
            self.open(self.prepare())
            self.is_other = self.fitted is not None and self.fitted.get("content", self.content) != self.content
        except DataError:  # other text may be too short to be divided
            self.is_other = bool(self.fitted)
            if not self.is_other:
                raise
        if self.is_other:
            rank_zero_print("Other text than the model was trained on: all of it is measured.")
            self.open(self.prepare())
        if self.fitted:
            self.adopt(self.fitted)

    def open(self, folder: Path) -> None:
        self.report, self.content = cache.report(folder), cache.content(folder)
        for split in SPLITS:
            source = "val" if split == "test" and not self.fractions[1] else split
            stride = 1 if split == "train" else self.seq_len
            self.splits[split] = Windows(cache.read(folder, source, "tokens"), self.seq_len, stride)  # type: ignore[assignment]
        if not len(self.splits["train"]) and not self.is_other:
            raise DataError(f"train has {self.report['train']['tokens']} tokens -> lower data.seq_len {self.seq_len}")
        self.facts = {"vocab_size": self.report["vocab_size"], "seq_len": self.seq_len}
        self.statistics = {"tokenizer": self.report["tokenizer"]}

    def adopt(self, state: dict[str, Any]) -> None:
        """Make the text tokens of the checkpoint's tokenizer; raises DataError where it cannot."""
        own, other = self.statistics["tokenizer"], state["statistics"]["tokenizer"]
        for split in ("val", "test") if own != other else ():
            text = decode(own, self.splits[split].tokens[1:].tolist())  # type: ignore[attr-defined]
            tokens = encode(other, text)
            row = torch.from_numpy(np.concatenate([tokens[:1], tokens]))
            self.splits[split] = Windows(row, self.seq_len, self.seq_len)  # type: ignore[assignment]
            self.report[split]["bytes_per_token"] = len(text.encode()) / len(tokens)
        super().adopt(state)

    def bytes_per_token(self, split: str) -> float:
        return self.report[split]["bytes_per_token"]

    def picture(self, batch: Batch) -> "Figure":
        return pictures.text([decode(self.statistics["tokenizer"], row.tolist()) for row in batch["x"].cpu()[:16]])

    def ordered(self) -> Callable[[int, int, int], Order]:
        return partial(moved, self.seq_len)


def moved(seq_len: int, n: int, seed: int, epoch: int) -> Order:
    """The epoch's order of n windows, as their first tokens; in each epoch they begin elsewhere."""
    order, offset = shuffled(n, seed, epoch), key(seed, epoch, 1) % seq_len
    return lambda start, stop: order(start, stop) * seq_len + offset


def topics() -> dict[str, str]:
    from pydoc_data.topics import topics as out

    return dict(sorted(out.items()))


def source_files(files: list[str]) -> tuple[list[Path], list[Path]]:
    """Files to read, and those in folders that are hidden or no text by their names; raises DataError where none is."""
    out: list[Path] = []
    others: list[Path] = []
    for name in files:
        path = Path(name)
        if not path.exists():
            raise DataError(f"data.files: {path} is not there -> name text files or folders")
        seen = cache.files_in(path) if path.is_dir() else [path]
        hidden = {f for f in seen if f != path and any(p.startswith(".") for p in f.relative_to(path).parts)}
        found = [f for f in seen if f == path or (f.suffix.lower() in SUFFIXES and f not in hidden)]
        others += sorted({*seen} - {*found})
        if not found:
            raise DataError(f"data.files: {path} has no {', '.join(SUFFIXES)} file -> name another folder")
        out += found
    if not out:
        raise DataError("data.files: the list is empty -> name text files, or leave it out")
    return list(dict.fromkeys(out)), others


def read(paths: list[Path], cleaning: Cleaning) -> dict[str, str]:
    """The text of each file; raises DataError where one is not UTF-8 or cannot be read, and may not be left out."""
    out = {}
    for path in paths:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            control = len(CONTROL.findall(text))
            if control > MAX_CONTROL_FRAC * len(text):
                reason = f"no text: {control:,} of {len(text):,} characters are control characters, as in UTF-16"
                cleaning.skip("", str(path), reason, "save it as UTF-8")
            else:
                out[str(path)] = text
        except UnicodeDecodeError as e:
            kind = "UTF-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "not UTF-8"
            reason = f"{kind}: in line {data[: e.start].count(10) + 1}, at byte {e.start}"
            cleaning.skip("", str(path), reason, "save it as UTF-8")
        except OSError as e:
            cleaning.skip("", str(path), f"cannot be read: {e.strerror}", "mend it")
    return out


def cleaned(texts: dict[str, str], cleaning: Cleaning) -> tuple[dict[str, str], int]:
    """Documents that are neither empty nor seen before, without control characters, and how many of those there were.

    Raises:
        DataError: nothing is left.
    """
    out: dict[str, str] = {}
    seen: dict[bytes, str] = {}
    num_control = 0
    for name, text in texts.items():
        text, n = CONTROL.subn("", text)
        num_control += n
        first = seen.setdefault(hashlib.sha256(text.encode()).digest(), name)
        if not text.strip():
            cleaning.remove("", name, "empty")
        elif first != name:
            cleaning.remove("", name, "duplicate", first)
        else:
            out[name] = text
    if not out:
        raise DataError("data.files: no text is left after cleaning -> name files that are not empty")
    return out, num_control


def num_cut(documents: Iterable[str], parts: dict[str, str]) -> int:
    """How many documents lie in more than one split."""
    starts = np.cumsum([0, *(len(text) + 1 for text in documents)])
    borders = np.cumsum([len(parts["train"]), len(parts["val"])])
    return len({int(np.searchsorted(starts, b)) for b in borders if b not in starts and b < starts[-1] - 1})


def divide(documents: list[str], split_by: str, val_frac: float, test_frac: float) -> dict[str, str]:
    """The text of each split: train first, then val, then test."""
    if split_by == "position":
        text = "\n".join(documents)
        a, b = int(len(text) * (1 - val_frac - test_frac)), int(len(text) * (1 - test_frac))
        return {"train": text[:a], "val": text[a:b], "test": text[b:]}
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in documents:
        u = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
        parts["val" if u < val_frac else "test" if u < val_frac + test_frac else "train"].append(text)
    for split, frac in (("train", 1.0), ("val", val_frac), ("test", test_frac)):
        if frac and not parts[split]:
            few = f"data.split_by: none of {len(documents)} documents fell to {split}"
            raise DataError(f"{few} -> take split_by position, or more documents")
    return {split: "\n".join(texts) for split, texts in parts.items()}
