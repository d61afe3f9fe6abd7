"""The manifest of a token file, `<prefix>.json`: what Megatron's format has no place for.

Which tokenizer made the ids, what the text is, and a checksum of every chunk of the data and of the index. The manifest
carries a checksum of itself.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

import orjson
import xxhash

import mindllm_engine._native as _native
from mindllm_engine.data.file_errors import reading, writing
from mindllm_engine.errors import DataError

ITEM_BYTES = {"uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "int64": 8}

# In the file beside the fields: the xxh3_64 of the others. One who edits a manifest by hand deletes this line.
_CHECKSUM = "checksum"

# What messages, tables and plans repeat: a line break in one of them would make two lines of an error.
_SHOWN = ("name", "lang", "category", "tokenizer_hash", "dtype")
_XXH3_64 = re.compile("[0-9a-f]{16}")
_LARGEST_VOCABULARY = (1 << 63) - 1  # int64's ids, but for the last, so that the native code can compare with it


@dataclass(kw_only=True)
class Manifest:
    """What the tokens are: the facts that Megatron's format has no place for, and counts to compare with the index."""

    name: str
    """The source's name, as mixture plans and metrics call it."""
    lang: str
    """The language of the text, such as `en` or `zh`."""
    category: str
    """The kind of text, such as `web`, `book` or `code`; curricula order the sources by it."""
    tokenizer_hash: str
    """The hash of the tokenizer that made the ids. Ids of another tokenizer mean something else."""
    vocab_size: int
    """The number of ids of that tokenizer; every id of the data is below it."""
    dtype: str
    """numpy's name of the ids' type in the .bin."""
    documents: int
    """The number of documents, empty ones included."""
    tokens: int
    """The number of token ids."""
    text_bytes: int
    """The size of the tokenized text in bytes of UTF-8; of a file with a mask, that of the text that is learnt."""
    chunk_bytes: int
    """The size in bytes of the chunks of the .bin that `chunks` has checksums for, all but the last: whole ids."""
    chunks: list[str]
    """The xxh3_64 of each chunk of the .bin, 16 hexadecimal digits each, in order."""
    index_checksum: str
    """The xxh3_64 of the .idx. Its document starts have no redundancy that opening the file could check."""
    mask: str = ""
    """The xxh3_64 of the .mask, which says what is learnt (data/loss_mask.py); empty, and not in the file, where there
    is none."""

    @property
    def content(self) -> str:
        """The identity of the tokens and their documents, whatever they are called: 16 hexadecimal digits."""
        parts = [self.tokenizer_hash, self.dtype, self.index_checksum, self.chunks]
        return _digest([*parts, self.mask] if self.mask else parts)

    @property
    def data_bytes(self) -> int:
        """The size of the .bin in bytes."""
        return self.tokens * ITEM_BYTES[self.dtype]

    def save(self, prefix: str | Path) -> None:
        """Write `<prefix>.json`, which appears complete or not at all. Raises DataError if it cannot be written."""
        path = with_suffix(prefix, ".json")
        staged = with_suffix(prefix, ".json.tmp")
        fields = dataclasses.asdict(self)
        if not self.mask:
            del fields["mask"]
        with writing(path):
            try:
                with staged.open("wb") as file:
                    file.write(orjson.dumps(fields | {_CHECKSUM: _digest(fields)}, option=orjson.OPT_INDENT_2))
                    file.flush()
                    os.fsync(file.fileno())
                staged.replace(path)
            finally:
                staged.unlink(missing_ok=True)

    @classmethod
    def load(cls, prefix: str | Path) -> Self:
        """Read and check `<prefix>.json`. Raises DataError if it is missing, malformed or damaged."""
        path = with_suffix(prefix, ".json")
        with reading(path):
            content = path.read_bytes()
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: str | Path) -> Self:
        """A manifest from its text. Raises DataError, which names `path`, if it is malformed or damaged."""
        try:
            fields = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise _malformed(path, f"no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise _malformed(path, "no JSON object")
        checksum = fields.pop(_CHECKSUM, None)
        _check_fields(path, fields, get_type_hints(cls))
        manifest = cls(**fields)
        manifest._check_values(path)
        if checksum is not None and checksum != _digest(fields):
            raise DataError(
                f"{path}: damaged manifest: its content is not that of its checksum; restore it or rebuild the token "
                f'file (after an edit by hand, delete its "{_CHECKSUM}")'
            )
        return manifest

    def check_index(self, prefix: str | Path, reader: _native.TokenFileReader) -> None:
        """Raise DataError if the index of `prefix` says otherwise."""
        found = {"documents": reader.documents, "tokens": reader.tokens, "dtype": str(reader.dtype)}
        for name, value in found.items():
            expected = getattr(self, name)
            if value != expected:
                raise DataError(
                    f"{prefix}.idx: {name}: {value}, but the manifest beside it says {expected}; the two are of "
                    f"different files: restore or rebuild all three"
                )

    def check_use(self, prefix: str | Path, tokenizer_hash: str | None, vocab_size: int | None) -> None:
        """Raise DataError if another tokenizer made the ids, or if a model's vocabulary is too small for them."""
        if tokenizer_hash is not None and tokenizer_hash != self.tokenizer_hash:
            raise DataError(
                f"{prefix}: made with tokenizer {self.tokenizer_hash}, not {tokenizer_hash}; tokenize the text again, "
                f"or give the tokenizer it was made with"
            )
        if vocab_size is not None and vocab_size < self.vocab_size:
            raise DataError(
                f"{prefix}: its tokenizer has {self.vocab_size} ids, the model's vocabulary only {vocab_size}; enlarge "
                f"the model's vocabulary or use the tokenizer that belongs to it"
            )

    def _check_values(self, path: str | Path) -> None:
        for name in _SHOWN:
            if not getattr(self, name).isprintable():
                raise _malformed(path, f"{name} holds a character that cannot be printed")
        if self.vocab_size > _LARGEST_VOCABULARY:
            raise _malformed(path, f"vocab_size is {self.vocab_size}, more ids than any type has")
        for name in ("documents", "tokens", "text_bytes"):
            if getattr(self, name) < 0:
                raise _malformed(path, f"{name} is {getattr(self, name)}, a negative number")
        for name in ("vocab_size", "chunk_bytes"):
            if getattr(self, name) <= 0:
                raise _malformed(path, f"{name} is {getattr(self, name)}, not a positive number")
        if self.dtype not in ITEM_BYTES:
            raise _malformed(path, f"dtype is '{self.dtype}', no type of token ids")
        if self.chunk_bytes % ITEM_BYTES[self.dtype] != 0:
            raise _malformed(path, f"chunk_bytes is {self.chunk_bytes}, no whole number of {self.dtype} ids")
        for checksum in [*self.chunks, self.index_checksum, *filter(None, [self.mask])]:
            if not _XXH3_64.fullmatch(checksum):
                raise _malformed(path, f"'{checksum}' is no checksum of 16 hexadecimal digits")
        chunks = -(-self.data_bytes // self.chunk_bytes)
        if len(self.chunks) != chunks:
            raise _malformed(path, f"{len(self.chunks)} checksums, but {self.tokens} tokens make {chunks} chunks")


def with_suffix(prefix: str | Path, suffix: str) -> Path:
    """One of the files of a token file."""
    # Not Path.with_suffix, which would cut the end of a prefix such as `web.v2`.
    return Path(f"{prefix}{suffix}")


def _digest(value: Any) -> str:
    return xxhash.xxh3_64_hexdigest(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def _malformed(path: str | Path, what: str) -> DataError:
    # One line, whatever a damaged file has in its names.
    what = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in what[:200])
    return DataError(f"{path}: malformed manifest: {what}; restore it or rebuild the token file")


def _check_fields(path: str | Path, fields: dict[str, Any], types: dict[str, Any]) -> None:
    if missing := types.keys() - fields.keys() - {"mask"}:
        raise _malformed(path, f"no {', '.join(sorted(missing))}")
    if unknown := fields.keys() - types.keys():
        raise _malformed(path, f"unknown {', '.join(sorted(unknown))}")
    for name, value in fields.items():
        kind = types[name]
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        # type(), not isinstance: True is no count.
        if not (is_list if kind == list[str] else type(value) is kind):
            raise _malformed(path, f"{name} must be {getattr(kind, '__name__', kind)}")
