"""Text to token ids and back. A tokenizer is plain text, which a checkpoint can hold: `bytes`, `characters:` followed
by all of them, or the JSON of the `tokenizers` library."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from src.run.errors import DataError


def make_tokenizer(kind: str, text: str, vocab_size: int) -> str:
    """A tokenizer fitted on the text."""
    if kind == "bytes":
        return kind
    if kind == "characters":
        return "characters:" + "".join(sorted(set(text)))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(text.splitlines(keepends=True), trainer)
    return bpe.to_str()


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
            what = f"the characters {new[:10]} were not in the training text"
            raise DataError(f"{what} -> leave them out, or train with data.tokenizer bytes or bpe")
        return np.array([ids[c] for c in text], np.int64)
    return np.array(Tokenizer.from_str(tokenizer).encode(text).ids, np.int64)


def decode(tokenizer: str, ids: list[int]) -> str:
    if tokenizer == "bytes":
        return bytes(ids).decode("utf-8", errors="replace")
    if tokenizer.startswith("characters:"):
        return "".join(tokenizer[len("characters:") + i] for i in ids)
    return Tokenizer.from_str(tokenizer).decode(ids)
