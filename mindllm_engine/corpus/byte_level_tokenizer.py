"""A byte-level BPE tokenizer (GPT-2's kind) from one tokenizer.json, with the interface of `Tokenizer`.

For MindLLM-1.3B, which starts from GPT-Neo's vocabulary and extends it (arXiv 2310.15777, section 3.2).
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
import xxhash

from mindllm_engine.errors import DataError

_BEGIN_AND_END = (("<|endoftext|>", "<|endoftext|>"), ("<s>", "</s>"))


class ByteLevelTokenizer:
    """A tokenizer.json of the library tokenizers. Special tokens in a text are plain characters to it."""

    def __init__(self, path: str | Path) -> None:
        """Raises DataError if the file is missing, no tokenizer.json, or names no tokens to begin and end documents."""
        # Its threads, one a core in each process, would fight with the other processes that encode.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.model_path = Path(path)
        try:
            content = self.model_path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror}") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises no narrower class
            raise DataError(f"{path}: is no tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.hash: str = xxhash.xxh3_64_hexdigest(content)
        """xxh3_64 of the file, 16 hexadecimal digits. Token files carry it."""
        self._ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._ids.values()) + 1
        self.bos_id, self.eos_id = self._begin_and_end()

    def encode(self, text: str) -> list[int]:
        """The ids of a text alone. Raises DataError for a lone surrogate."""
        tokens, _ = self.encode_batch([text])
        ids: list[int] = tokens.tolist()
        return ids

    def encode_batch(self, texts: list[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The ids of many texts, back to back: tokens int32[total], lengths int32[texts].

        `decode` gives each text back exactly if the tokenizer has no normaliser and adds no space, as GPT-2's does not.
        Raises DataError for a lone surrogate.
        """
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # of a text that is no str as well
            if all(map(_is_encodable, texts)):
                raise
            raise DataError("a text holds a lone surrogate, which is no Unicode character") from None
        ids_of_texts = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids_of_texts), dtype=np.int32, count=len(texts))
        total = int(lengths.sum(dtype=np.int64))
        return np.fromiter(itertools.chain.from_iterable(ids_of_texts), dtype=np.int32, count=total), lengths

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens give nothing, and bytes that are no UTF-8 give U+FFFD.

        Raises DataError for an id outside the vocabulary.
        """
        ids = list(map(int, ids))
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise DataError(f"a token id is outside 0..{self.vocab_size - 1}: {min(ids)} to {max(ids)} were given")
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def special_id(self, token: str) -> int:
        """The id of a special token such as "<|user|>", for chat templates: `encode` takes it for plain characters.

        Raises DataError if the tokenizer was made without it.
        """
        if token not in self._ids:
            raise DataError(
                f"{self.model_path}: has no special token {token}; extend the tokenizer with special_tokens: true"
            )
        return self._ids[token]

    def _begin_and_end(self) -> tuple[int, int]:
        special = {token.content: id for id, token in self._tokenizer.get_added_tokens_decoder().items()}
        for begin, end in _BEGIN_AND_END:
            if begin in special and end in special:
                return special[begin], special[end]
        raise DataError(f"{self.model_path}: has neither <|endoftext|> nor <s> and </s>, which documents need")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
