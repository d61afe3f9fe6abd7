"""Append Chinese tokens to a byte-level BPE tokenizer (GPT-2's kind) without changing how its language is encoded.

The new merges follow all base merges, and each makes whole Chinese characters (chinese_pieces.py) or the first two or
three bytes of one, which no other character begins with. So, whatever the text:

- The ids of all base tokens stay. A text without a Chinese character has the ids it had: no new merge applies to its
  bytes. Accents, curly quotes, emoji, Cyrillic or Japanese kana next to them make no difference.
- A text of both languages: the new encoding is the old one with neighbouring tokens joined, since merges are done in
  their order and the base merges leave the base encoding. A token without a byte of a Chinese character stays.

The format is `tokenizer.json` of the library tokenizers; GPT-2's own vocab.json and merges.txt are read into it.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from mindllm_engine.corpus.chinese_pieces import train_chinese_pieces
from mindllm_engine.corpus.sentencepiece_model import ModelType
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS, PERSONAL_DATA_TOKENS
from mindllm_engine.errors import DataError

END_OF_TEXT = "<|endoftext|>"


def _letters_of_bytes() -> list[str]:
    """GPT-2's alphabet: a printable character for each byte, itself where it is one of Latin-1, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_LETTER_OF_BYTE = _letters_of_bytes()
_BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(_LETTER_OF_BYTE)}


def letters(text: str) -> str:
    """A text as byte-level vocabularies write it."""
    return "".join(_LETTER_OF_BYTE[byte] for byte in text.encode())


def extend_byte_level(base: Path, texts: Iterable[str], new_tokens: int, special_tokens: bool) -> bytes:
    """The tokenizer.json `base`, or that of the folder `base` with vocab.json and merges.txt, with `new_tokens` Chinese
    tokens trained on `texts`, and behind them, if asked for, those of the special tokens (special_tokens.py) it lacks.

    Some of the new tokens, a few hundred at most, are the first bytes of characters; all others are whole characters.

    Raises DataError if it is no byte-level BPE tokenizer, or the texts give fewer tokens.
    """
    extension = _Extension(from_vocab_and_merges(base) if base.is_dir() else _read(base), base)
    known = filter(None, map(_text_of_letters, extension.vocab))
    pieces = train_chinese_pieces(map(extension.normalize, texts), new_tokens, known, ModelType.BPE)
    for piece in pieces:
        if extension.added == new_tokens:
            break
        if len(piece.text) == 1:
            extension.add_character(piece.text, new_tokens)
        else:
            extension.add_word(piece.text)
    if extension.added < new_tokens:
        raise DataError(f"the text gives only {extension.added} new tokens; give more text, or ask for fewer tokens")
    if special_tokens:
        extension.add_special_tokens()
    return extension.to_json()


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise DataError(f"{path}: is no tokenizer.json: {error}") from None


def from_vocab_and_merges(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from the two files it was published as. Raises DataError."""
    try:
        model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises no narrower class
        raise DataError(f"{folder}: vocab.json and merges.txt cannot be read: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if model.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


class _Extension:
    """A tokenizer.json to which tokens and merges are added."""

    def __init__(self, base: tokenizers.Tokenizer, path: Path) -> None:
        self.base = base
        # As the library writes it, so that an older file has today's form: all fields, merges as pairs.
        self.content: dict[str, Any] = orjson.loads(base.to_str())
        if self.content["model"]["type"] != "BPE" or not _is_byte_level(self.content):
            raise DataError(f"{path}: is no byte-level BPE tokenizer, such as GPT-2's")
        self.vocab: dict[str, int] = self.content["model"]["vocab"]
        if any(letter not in self.vocab for letter in _LETTER_OF_BYTE):
            raise DataError(f"{path}: its vocabulary lacks some of the 256 bytes")
        self.merges: list[list[str]] = self.content["model"]["merges"]
        self.pairs = set(map(tuple, self.merges))
        # Tokens outside the model's vocabulary would be given other ids as it grows.
        for token in self.content["added_tokens"]:
            self.vocab.setdefault(token["content"], token["id"])
        self.next_id = max(self.vocab.values()) + 1
        self.added = 0

    def normalize(self, text: str) -> str:
        """As the tokenizer changes a text before it encodes it; GPT-2's does not."""
        normalizer = self.base.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def add_character(self, character: str, limit: int) -> None:
        """Join the base tokens of a character from the left, so that each result is its beginning."""
        parts = [token.value for token in self.base.model.tokenize(letters(character))]
        for left, right in zip(itertools.accumulate(parts), parts[1:], strict=False):
            if left + right not in self.vocab:
                if self.added == limit:
                    return
                self.add_token(left + right)
            self.add_merge(left, right)

    def add_word(self, word: str) -> None:
        """Join any two tokens that make it."""
        halves = [(letters(word[:cut]), letters(word[cut:])) for cut in range(1, len(word))]
        halves = [(left, right) for left, right in halves if left in self.vocab and right in self.vocab]
        if halves and letters(word) not in self.vocab:
            self.add_token(letters(word))
        for left, right in halves:
            self.add_merge(left, right)

    def add_token(self, token: str) -> None:
        self.vocab[token] = self.next_id
        self.next_id += 1
        self.added += 1

    def add_merge(self, left: str, right: str) -> None:
        if (left, right) not in self.pairs:  # a merge written twice would take the later rank
            self.pairs.add((left, right))
            self.merges.append([left, right])

    def add_special_tokens(self) -> None:
        """Personal data as tokens found in any text; chat tokens as special ones, which ByteLevelTokenizer leaves."""
        for token in (*PERSONAL_DATA_TOKENS, *CHAT_TOKENS):
            if token in self.vocab:
                continue
            self.content["added_tokens"].append(
                {
                    "id": self.next_id,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": token in CHAT_TOKENS,
                }
            )
            self.add_token(token)

    def to_json(self) -> bytes:
        return orjson.dumps(self.content)


def _is_byte_level(content: dict[str, Any]) -> bool:
    pre_tokenizer = content["pre_tokenizer"] or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return any(step.get("type") == "ByteLevel" for step in steps) and not content["model"]["continuing_subword_prefix"]


def _text_of_letters(token: str) -> str | None:
    """The text that a token of the vocabulary stands for; None if its bytes are no whole characters."""
    try:
        return bytes(_BYTE_OF_LETTER[letter] for letter in token).decode()
    except (KeyError, UnicodeDecodeError):
        return None
