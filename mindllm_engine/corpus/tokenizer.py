"""The tokenizer: SentencePiece BPE with byte fallback that gives every text back exactly.

Identity normalisation, no dummy prefix, spaces kept, digits one by one. The ids of the special tokens are fixed:
`<unk>` 0, `<s>` 1, `</s>` 2, no padding token; those of special_tokens.py are there where they were asked for. Newlines
are ordinary characters of the training text, so pieces such as "。\\n" and ")\\n\\n" are learned: on this project's zh
and en text that gave 2-12 % more bytes a token than a newline symbol of its own or the byte fallback. Tabs cannot be
learned (SentencePiece uses them as a boundary mark inside), so runs of one to eight tabs are symbols.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
import xxhash

import mindllm_engine._native as _native
from mindllm_engine.corpus.sentencepiece_model import encodes_by_units
from mindllm_engine.corpus.sentencepiece_training import train_sentencepiece
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS, PERSONAL_DATA_TOKENS
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import DataError

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2

# SentencePiece writes spaces as this character inside, and would decode the character itself as a space.
_SPACE_MARK = "\u2581"

_CACHE_BYTES = 32 << 20  # of units and their ids; 30 MB of web text, Chinese or English, leave some 9 MB

_TAB_RUNS = ["\t" * count for count in range(1, 9)]


class Tokenizer:
    """A trained SentencePiece model. Thread-safe; encoding fills a cache of some 32 MB at most."""

    def __init__(self, model_path: str | Path) -> None:
        """Raises DataError if the file is missing or no SentencePiece model."""
        self.model_path = Path(model_path)
        try:
            model = self.model_path.read_bytes()
        except OSError as error:
            raise DataError(f"{model_path}: the tokenizer cannot be read: {error.strerror}") from None
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(model)
        except RuntimeError:
            raise DataError(f"{model_path}: is no SentencePiece model") from None
        if not self._processor.vocab_size():
            raise DataError(f"{model_path}: is no SentencePiece model")
        self.hash: str = xxhash.xxh3_64_hexdigest(model)
        """xxh3_64 of the model file, 16 hexadecimal digits. Token files carry it."""
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        bytes_of_mark = [f"<0x{byte:02X}>" for byte in _SPACE_MARK.encode()]
        self._ids_of_space_mark: list[int] = self._processor.piece_to_id(bytes_of_mark)
        self._units: _native.UnitEncoder | None = None
        if encodes_by_units(self._processor):
            pieces = self._processor.id_to_piece(list(range(self.vocab_size)))
            self._units = _native.UnitEncoder(pieces, _CACHE_BYTES)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without `<s>` and `</s>`; text such as "<s>" in it is plain characters.

        Raises DataError for a lone surrogate, which no UTF-8 file can hold.
        """
        tokens, _ = self.encode_batch([text])
        ids: list[int] = tokens.tolist()
        return ids

    def encode_batch(self, texts: list[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The ids of many texts, back to back: tokens int32[total], lengths int32[texts].

        `decode` gives each text back exactly, whatever its characters, for a tokenizer that `train_tokenizer` made.
        Raises DataError for a lone surrogate.
        """
        try:
            if self._units is not None:
                tokens, lengths = self._units.encode(texts, self._encode_units)
                return tokens, lengths
            ids_of_texts = self._processor.encode([text.encode() for text in texts], num_threads=1)
        except UnicodeEncodeError as error:
            raise DataError("a text holds a lone surrogate, which is no Unicode character") from error
        lengths = np.fromiter(map(len, ids_of_texts), dtype=np.int32, count=len(texts))
        total = int(lengths.sum(dtype=np.int64))
        return np.fromiter(itertools.chain.from_iterable(ids_of_texts), dtype=np.int32, count=total), lengths

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; `<s>` and `</s>` give nothing, and bytes that are no UTF-8 give U+FFFD.

        Raises DataError for an id outside the vocabulary.
        """
        ids = list(map(int, ids))
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise DataError(f"a token id is outside 0..{self.vocab_size - 1}: {min(ids)} to {max(ids)} were given")
        text: str = self._processor.decode(ids)
        return text

    def special_id(self, token: str) -> int:
        """The id of a special token such as "<|user|>", for chat templates: `encode` takes it for plain characters.

        Raises DataError if the tokenizer was made without it.
        """
        token_id: int = self._processor.piece_to_id(token)
        if token_id == self._processor.unk_id():
            raise DataError(
                f"{self.model_path}: has no special token {token}; train the tokenizer with special_tokens: true"
            )
        return token_id

    def _encode_units(self, units: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(units, num_threads=1)
        if _SPACE_MARK in units:
            ids[units.index(_SPACE_MARK)] = self._ids_of_space_mark
        return ids


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, model_path: str | Path, special_tokens: bool = False
) -> Tokenizer:
    """Train a tokenizer of exactly `vocab_size` ids on `texts` and write it to `model_path`, all or nothing.

    special_tokens: with those of mindllm_engine/corpus/special_tokens.py. The tokens of personal data are kept whole in
    any text; those of a chat are control symbols, which no text is ever encoded as.

    The same texts in the same order give the same file. All texts are held in memory: about 20 bytes a byte of text
    (608 MB took 11.4 GB and 141 s on two cores). `balanced_sample` chooses them from a corpus.

    Raises DataError if the texts are too few for the vocabulary, or the vocabulary too small for their characters.
    """
    model = train_sentencepiece(
        texts,
        vocab_size,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=[*_TAB_RUNS, *(PERSONAL_DATA_TOKENS if special_tokens else ())],
        control_symbols=list(CHAT_TOKENS) if special_tokens else [],
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
    )
    write_atomically(Path(model_path), model)
    return Tokenizer(model_path)
