"""Token files: `<prefix>.bin` and `<prefix>.idx` in Megatron's format, and `<prefix>.json`, the manifest beside them.

The native module reads and writes the pair (csrc/token_file_reader.hpp, csrc/token_file_writer.hpp). This file adds
what Megatron's format lacks: which tokenizer made the ids, what the text is, and a checksum of every chunk of the data.
Every mistake of the user's becomes a `DataError`.
"""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_type_hints

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

import mindllm_engine._native as _native
from mindllm_engine.errors import DataError

TokenDtype = Literal["uint16", "int32"]

CHUNK_BYTES = 64 << 20
"""How many bytes of the .bin share a checksum: 16 hexadecimal digits for 64 MiB, so a terabyte takes 16,000 of them."""

_UINT16_VOCABULARY = 65_500
"""From this vocabulary on Megatron takes int32 (`DType.optimal_dtype`), and so do we."""


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
    """The size of the tokenized text in bytes of UTF-8."""
    chunk_bytes: int
    """The size in bytes of the chunks of the .bin that `chunks` has checksums for; the last one may be shorter."""
    chunks: list[str]
    """The xxh3_64 of each chunk of the .bin, 16 hexadecimal digits each, in order."""
    index_checksum: str
    """The xxh3_64 of the .idx. Its document starts have no redundancy that opening the file could check."""

    def save(self, prefix: str | Path) -> None:
        """Write `<prefix>.json`, which appears complete or not at all. Raises DataError if it cannot be written."""
        path = _with_suffix(prefix, ".json")
        staged = _with_suffix(prefix, ".json.tmp")
        with _writing(path):
            try:
                with staged.open("wb") as file:
                    file.write(orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_INDENT_2))
                    file.flush()
                    os.fsync(file.fileno())
                staged.replace(path)
            finally:
                staged.unlink(missing_ok=True)

    @classmethod
    def load(cls, prefix: str | Path) -> Self:
        """Read and check `<prefix>.json`. Raises DataError if it is missing or malformed."""
        path = _with_suffix(prefix, ".json")
        with _reading(path):
            content = path.read_bytes()
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: str | Path) -> Self:
        """Read and check the content of a manifest; `path` is for the error, a DataError if it is malformed."""
        try:
            fields = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise _malformed(path, f"no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise _malformed(path, "no JSON object")
        _check_fields(path, fields, get_type_hints(cls))
        manifest = cls(**fields)
        manifest._check_values(path)
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
                f"{prefix}: made with tokenizer {self.tokenizer_hash}, not {tokenizer_hash}; tokenize "
                f"the text again, or give the tokenizer it was made with"
            )
        if vocab_size is not None and vocab_size < self.vocab_size:
            raise DataError(
                f"{prefix}: its tokenizer has {self.vocab_size} ids, the model's vocabulary only "
                f"{vocab_size}; enlarge the model's vocabulary or use the tokenizer that belongs to it"
            )

    def _check_values(self, path: str | Path) -> None:
        for name in ("documents", "tokens", "text_bytes"):
            if getattr(self, name) < 0:
                raise _malformed(path, f"{name} is {getattr(self, name)}, a negative number")
        for name in ("vocab_size", "chunk_bytes"):
            if getattr(self, name) <= 0:
                raise _malformed(path, f"{name} is {getattr(self, name)}, not a positive number")
        item_bytes = {"uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "int64": 8}.get(self.dtype)
        if item_bytes is None:
            raise _malformed(path, f"dtype is '{self.dtype}', no type of token ids")
        chunks = -(-self.tokens * item_bytes // self.chunk_bytes)
        if len(self.chunks) != chunks:
            raise _malformed(path, f"{len(self.chunks)} checksums, but {self.tokens} tokens make {chunks} chunks")


def token_dtype(vocab_size: int) -> TokenDtype:
    """The type that ids of a vocabulary are stored in, by Megatron's rule: uint16 below 65,500 entries, else int32."""
    return "uint16" if vocab_size < _UINT16_VOCABULARY else "int32"


class TokenFile:
    """A token file opened for reading: the native reader and the manifest, which agree with each other.

    The tokens are one stream, numbered from 0, which the documents divide. Nothing is loaded: arrays are views of a
    memory map. Safe to share among threads. Ranges and documents that do not exist raise IndexError; an index whose
    damage opening could not see raises DataError where it is used.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Open `<prefix>.bin`, `.idx` and `.json`, and check the manifest, the sizes and the ends of the index: in a
        time that does not grow with the tokens. The rest is left to `verify_chunks`.

        Raises DataError if one of them is missing, damaged or does not match the others.
        """
        self.prefix = Path(prefix)
        self.manifest = Manifest.load(prefix)
        with _reading(self.prefix):
            self.reader = _native.TokenFileReader(self.prefix, thorough=False)
        self.manifest.check_index(self.prefix, self.reader)

    @property
    def documents(self) -> int:
        """The number of documents."""
        return self.reader.documents

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.reader.tokens

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the ids in the file."""
        return self.reader.dtype

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of each document in tokens, int64[documents]; made anew on each access."""
        with _reading(self.prefix):
            return self.reader.lengths

    def document(self, index: int) -> npt.NDArray[Any]:
        """A read-only view of a document's ids, [tokens of the document] of `dtype`."""
        with _reading(self.prefix):
            return self.reader.document(index)

    def read(self, start_token: int, count: int) -> npt.NDArray[Any]:
        """A read-only view of `count` ids of the stream, [count] of `dtype`."""
        return self.reader.read(start_token, count)

    def gather(
        self, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], out: npt.NDArray[np.int32 | np.int64]
    ) -> None:
        """Copy n ranges of the stream back to back to `out`.

        starts, counts: int64[n], in tokens; out: int32 or int64, with exactly sum(counts) items.
        """
        self.reader.gather(starts, counts, out)

    def check(self, tokenizer_hash: str | None = None, vocab_size: int | None = None) -> None:
        """Raise DataError if another tokenizer made the ids, or if a model's vocabulary is too small for them."""
        self.manifest.check_use(self.prefix, tokenizer_hash, vocab_size)

    def verify_ids(self, vocab_size: int) -> None:
        """Read every id; raise DataError for the first that is below 0 or not below `vocab_size`."""
        stray = self.reader.find_stray(vocab_size)
        if stray is not None:
            document, position, token = stray
            raise DataError(
                f"{self.prefix}.bin: token id {token} at position {position} of document {document} is outside the "
                f"vocabulary of {vocab_size}; tokenize the text again with the right tokenizer"
            )

    def verify_chunks(self) -> None:
        """Read all of the .bin and .idx; raise DataError for the first checksum that is not the manifest's."""
        with _reading(self.prefix):
            self.reader.check_index()
            found = _index_checksum(self.prefix)
        if found != self.manifest.index_checksum:
            raise DataError(
                f"{self.prefix}.idx: damaged: its checksum is {found}, the manifest says "
                f"{self.manifest.index_checksum}; restore the file from a copy or rebuild it"
            )
        hasher = _ChunkHasher(self.manifest.chunk_bytes)
        hasher.update(self.read(0, self.tokens))
        for index, (found, expected) in enumerate(zip(hasher.finish(), self.manifest.chunks, strict=True)):
            if found != expected:
                start = index * self.manifest.chunk_bytes
                raise DataError(
                    f"{self.prefix}.bin: damaged: chunk {index}, from byte {start}, has checksum {found}, the manifest "
                    f"says {expected}; restore the file from a copy or rebuild it"
                )


class TokenFileBuilder:
    """Writes a token file and its manifest, all or nothing.

    A context manager: `with TokenFileBuilder(...) as builder: builder.append_many(tokens, lengths, text_bytes)`.
    Leaving the block completes the files, the manifest last; leaving it by an exception deletes what was written. Files
    of the same name that exist are replaced only at the end. Not thread-safe.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: TokenDtype,
        *,
        name: str,
        lang: str,
        category: str,
        tokenizer_hash: str,
        vocab_size: int,
    ) -> None:
        """Open the temporary files in the folder of `prefix`, which must exist. The facts are those of `Manifest`.

        Raises DataError if they cannot be written, or if `dtype` (see `token_dtype`) cannot hold the vocabulary.
        """
        if vocab_size - 1 > np.iinfo(dtype).max:
            raise DataError(
                f"{prefix}: {dtype} cannot hold a vocabulary of {vocab_size}; use {token_dtype(vocab_size)}"
            )
        self.manifest = Manifest(
            name=name,
            lang=lang,
            category=category,
            tokenizer_hash=tokenizer_hash,
            vocab_size=vocab_size,
            dtype=dtype,
            documents=0,
            tokens=0,
            text_bytes=0,
            chunk_bytes=CHUNK_BYTES,
            chunks=[],
            index_checksum="",
        )
        self.prefix = Path(prefix)
        self._hasher = _ChunkHasher(CHUNK_BYTES)
        with _writing(self.prefix):
            self._writer = _native.TokenFileWriter(self.prefix, dtype)

    def append_many(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[Any], text_bytes: int) -> None:
        """Append documents lying back to back.

        tokens: integers[tokens]; lengths: integers[documents], in tokens; text_bytes: the UTF-8 bytes of their text.
        Raises DataError for an id outside the vocabulary (nothing of the call is written then) and for a full disk.
        """
        tokens = np.asarray(tokens)
        self._check_vocabulary(tokens)
        with _writing(self.prefix):
            self._writer.append_many(tokens, lengths)
        self._hasher.update(np.ascontiguousarray(tokens, dtype=self.manifest.dtype))
        self.manifest.text_bytes += text_bytes

    def append_file(self, prefix: str | Path) -> None:
        """Append a token file of the same tokenizer and dtype, such as a shard. Raises DataError if it is unfit."""
        shard = TokenFile(prefix)
        shard.check(self.manifest.tokenizer_hash, self.manifest.vocab_size)
        with _writing(shard.prefix):
            self._writer.append_file(shard.prefix)
        self._hasher.update(shard.read(0, shard.tokens))
        self.manifest.text_bytes += shard.manifest.text_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._writer.abort()
            return
        self.manifest.documents = self._writer.documents
        self.manifest.tokens = self._writer.tokens
        self.manifest.chunks = self._hasher.finish()
        self._complete()

    def _complete(self) -> None:
        # An older manifest goes first: at no moment may one stand beside data that it does not describe.
        with _writing(self.prefix):
            _with_suffix(self.prefix, ".json").unlink(missing_ok=True)
            self._writer.finalize()
        try:
            self.manifest.index_checksum = _index_checksum(self.prefix)
            self.manifest.save(self.prefix)
        except BaseException:
            for suffix in (".idx", ".bin"):
                _with_suffix(self.prefix, suffix).unlink(missing_ok=True)
            raise

    def _check_vocabulary(self, tokens: npt.NDArray[Any]) -> None:
        # Ids below 0 are left to the native writer, which names their document.
        if tokens.size and tokens.dtype.kind in "iu" and int(tokens.max()) >= self.manifest.vocab_size:
            raise DataError(
                f"{self.prefix}: token id {int(tokens.max())}, in a document from {self._writer.documents} on, is "
                f"outside the vocabulary of {self.manifest.vocab_size}; give the tokenizer that made the ids"
            )


class _ChunkHasher:
    """The xxh3_64 of each chunk of a stream of bytes that comes in pieces of any size."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._hash = xxhash.xxh3_64()
        self._room = chunk_bytes
        self._done: list[str] = []

    def update(self, items: npt.NDArray[Any]) -> None:
        """Hash a contiguous array's bytes."""
        data = items.view(np.uint8).data
        while data.nbytes:
            piece, data = data[: self._room], data[self._room :]
            self._hash.update(piece)
            self._room -= piece.nbytes
            if self._room == 0:
                self._close_chunk()

    def finish(self) -> list[str]:
        """Close the last chunk and return the hexadecimal digits of all."""
        if self._room < self._chunk_bytes:
            self._close_chunk()
        return self._done

    def _close_chunk(self) -> None:
        self._done.append(self._hash.hexdigest())
        self._hash.reset()
        self._room = self._chunk_bytes


def _index_checksum(prefix: Path) -> str:
    return xxhash.xxh3_64_hexdigest(np.memmap(_with_suffix(prefix, ".idx"), mode="r").data)


def _with_suffix(prefix: str | Path, suffix: str) -> Path:
    # Not Path.with_suffix, which would cut the end of a prefix such as `web.v2`.
    return Path(f"{prefix}{suffix}")


def _malformed(path: str | Path, what: str) -> DataError:
    return DataError(f"{path}: malformed manifest: {what}; restore it or rebuild the token file")


def _check_fields(path: str | Path, fields: dict[str, Any], types: dict[str, Any]) -> None:
    if missing := types.keys() - fields.keys():
        raise _malformed(path, f"no {', '.join(sorted(missing))}")
    if unknown := fields.keys() - types.keys():
        raise _malformed(path, f"unknown {', '.join(sorted(unknown))}")
    for name, kind in types.items():
        value = fields[name]
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        # type(), not isinstance: True is no count.
        if not (is_list if kind == list[str] else type(value) is kind):
            raise _malformed(path, f"{name} must be {getattr(kind, '__name__', kind)}")


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    return _as_data_error(path, "check the path, or build the token file first", "restore or rebuild the token file")


def _writing(path: Path) -> contextlib.AbstractContextManager[None]:
    return _as_data_error(path, "make its folder first", "give documents of one tokenizer, and the dtype of its ids")


@contextlib.contextmanager
def _as_data_error(path: Path, missing_remedy: str, invalid_remedy: str) -> Iterator[None]:
    """Turn what the system and the native module raise into a DataError; `path` is named if they name no file."""
    try:
        yield
    except OSError as error:
        cause, remedy = os.strerror(error.errno or errno.EIO).lower(), "check its permissions and its disk"
        if error.errno == errno.ENOENT:
            cause, remedy = "missing", missing_remedy
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause, remedy = "disk full", "free some space or write elsewhere, and run again"
        raise DataError(f"{error.filename or path}: {cause}; {remedy}") from error
    except ValueError as error:
        raise DataError(f"{error}; {invalid_remedy}") from error
