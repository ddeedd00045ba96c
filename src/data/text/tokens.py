"""Text to token ids and back. A tokenizer is plain text, which a checkpoint can hold: `bytes`, `characters:` followed
by all of them, or the JSON of the `tokenizers` library."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from src.run.errors import DataError


def make_tokenizer(kind: str, texts: dict[str, str], vocab_size: int) -> str:
    """A tokenizer fitted on `texts["train"]` alone.

    Raises:
        DataError: a held-out character is not in train.
    """
    if kind == "bytes":
        return kind
    if kind == "characters":
        known = set(texts["train"])
        if new := sorted(set("".join(texts.values())) - known):
            raise DataError(f"train lacks the characters {few(new)} of val or test -> --data.tokenizer bytes or bpe")
        return "characters:" + "".join(sorted(known))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts["train"].splitlines(keepends=True), trainer)
    return bpe.to_str()


def few(characters: list[str]) -> str:
    return f"{characters[:10]}" + (f" and {len(characters) - 10} more" if len(characters) > 10 else "")


def vocabulary_size(tokenizer: str) -> int:
    if tokenizer == "bytes":
        return 256
    if tokenizer.startswith("characters:"):
        return len(tokenizer) - len("characters:")
    return Tokenizer.from_str(tokenizer).get_vocab_size()


def encode(tokenizer: str, text: str) -> np.ndarray:
    """Token ids, int64. Raises DataError at a character that the tokenizer does not know."""
    if tokenizer == "bytes":
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    if tokenizer.startswith("characters:"):
        ids = {c: i for i, c in enumerate(tokenizer.removeprefix("characters:"))}
        if new := sorted(set(text) - set(ids)):
            raise DataError(f"the characters {few(new)} were not in the training text -> leave them out")
        return np.array([ids[c] for c in text], np.int64)
    return np.array(Tokenizer.from_str(tokenizer).encode(text).ids, np.int64)


def decode(tokenizer: str, ids: list[int]) -> str:
    if tokenizer == "bytes":
        return bytes(ids).decode("utf-8", errors="replace")
    if tokenizer.startswith("characters:"):
        return "".join(tokenizer[len("characters:") + i] for i in ids)
    return Tokenizer.from_str(tokenizer).decode(ids)
