"""Opens a tokenizer of either kind by what its file holds: a SentencePiece model, or a byte-level tokenizer.json."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mindllm_engine.corpus.byte_level_tokenizer import ByteLevelTokenizer
from mindllm_engine.corpus.tokenizer import Tokenizer


class TextTokenizer(Protocol):
    """What `Tokenizer` and `ByteLevelTokenizer` have in common; see there."""

    model_path: Path
    hash: str
    vocab_size: int
    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def special_id(self, token: str) -> int: ...


def open_tokenizer(path: str | Path) -> TextTokenizer:
    """The tokenizer in a file, whatever the file is called: a run folder keeps both kinds under one name.

    Raises DataError if the file is missing or no tokenizer.
    """
    return ByteLevelTokenizer(path) if is_tokenizer_json(path) else Tokenizer(path)


def first_changed_id(tokenizer: TextTokenizer, base: TextTokenizer) -> int | None:
    """The first id of `base` that `tokenizer` lacks or gives another text; None if it extends `base`. Single bytes of
    a character all decode as U+FFFD, so they are not told apart."""
    if tokenizer.hash == base.hash:
        return None
    for token in range(base.vocab_size):
        if token >= tokenizer.vocab_size or tokenizer.decode([token]) != base.decode([token]):
            return token
    return None


def is_tokenizer_json(path: str | Path) -> bool:
    """Whether the file begins as JSON does (a SentencePiece model begins with a line feed). False if unreadable."""
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"{"
    except OSError:
        return False
