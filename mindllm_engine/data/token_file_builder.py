"""Writes token files: `<prefix>.bin`, `.idx` and the manifest beside them, all or nothing."""

from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import xxhash

import mindllm_engine._native as _native
from mindllm_engine.data.file_errors import writing
from mindllm_engine.data.loss_mask import SUFFIX as MASK_SUFFIX
from mindllm_engine.data.loss_mask import MaskWriter
from mindllm_engine.data.manifest import Manifest, with_suffix
from mindllm_engine.data.token_files import TokenFile, index_checksum
from mindllm_engine.errors import DataError

TokenDtype = Literal["uint16", "int32"]

CHUNK_BYTES = 8 << 20
"""How many bytes of the .bin share a checksum: 16 hexadecimal digits for 8 MiB, so a terabyte takes 120,000 of them."""

_UINT16_VOCABULARY = 65_500
"""From this vocabulary on Megatron takes int32 (`DType.optimal_dtype`), and so do we."""


def token_dtype(vocab_size: int) -> TokenDtype:
    """The type that ids of a vocabulary are stored in, by Megatron's rule: uint16 below 65,500 entries, else int32."""
    return "uint16" if vocab_size < _UINT16_VOCABULARY else "int32"


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
        masked: bool = False,
    ) -> None:
        """Open the temporary files in the folder of `prefix`, which must exist. The facts are those of `Manifest`;
        masked: documents come with what of them is learnt (data/loss_mask.py).

        Raises DataError if they cannot be written, if `dtype` (see `token_dtype`) cannot hold the vocabulary, or if a
        fact could not be printed.
        """
        for fact in (name, lang, category, tokenizer_hash):
            if not fact.isprintable():
                raise DataError(f"{prefix}: {fact!r} holds a character that cannot be printed; give it another name")
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
        with writing(self.prefix):
            self._writer = _native.TokenFileWriter(self.prefix, dtype)
        self._mask = MaskWriter(self.prefix) if masked else None

    def append_many(
        self,
        tokens: npt.NDArray[Any],
        lengths: npt.NDArray[Any],
        text_bytes: int,
        mask: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Append documents lying back to back.

        tokens: integers[tokens]; lengths: integers[documents], in tokens; text_bytes: the UTF-8 bytes of their text, of
        what is learnt of it; mask: uint8[tokens], for a file that has one.
        Raises DataError for an id outside the vocabulary (nothing of the call is written then) and for a full disk.
        """
        tokens = np.asarray(tokens)
        self._check_vocabulary(tokens)
        if (0 if mask is None else len(mask)) != (0 if self._mask is None else len(tokens)):
            raise ValueError("a file with a mask takes a byte a token, another none")
        with writing(self.prefix):
            self._writer.append_many(tokens, lengths)
        if self._mask is not None and mask is not None:
            self._mask.append(mask)
        self._hasher.update(np.ascontiguousarray(tokens, dtype=self.manifest.dtype))
        self.manifest.text_bytes += text_bytes

    def append_file(self, prefix: str | Path) -> None:
        """Append a token file of the same tokenizer and dtype, such as a shard. Raises DataError if it is unfit."""
        shard = TokenFile(prefix)
        shard.check(self.manifest.tokenizer_hash, self.manifest.vocab_size)
        if (shard.mask is None) != (self._mask is None):
            raise DataError(f"{prefix}: files with a mask and without one cannot be joined; rebuild one of them")
        with writing(shard.prefix):
            self._writer.append_file(shard.prefix)
        self._hasher.update(shard.read(0, shard.tokens))
        if self._mask is not None and shard.mask is not None:
            self._mask.append(shard.mask)
        self.manifest.text_bytes += shard.manifest.text_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._writer.abort()
            if self._mask is not None:
                self._mask.abort()
            return
        self.manifest.documents = self._writer.documents
        self.manifest.tokens = self._writer.tokens
        self.manifest.chunks = self._hasher.finish()
        self._complete()

    def _complete(self) -> None:
        # An older manifest goes first: at no moment may one stand beside data that it does not describe.
        with writing(self.prefix):
            with_suffix(self.prefix, ".json").unlink(missing_ok=True)
            self._writer.finalize()
            with_suffix(self.prefix, MASK_SUFFIX).unlink(missing_ok=True)
        try:
            if self._mask is not None:
                self.manifest.mask = self._mask.complete()
            self.manifest.index_checksum = index_checksum(self.prefix)
            self.manifest.save(self.prefix)
        except BaseException:
            for suffix in (".idx", ".bin", MASK_SUFFIX):
                with_suffix(self.prefix, suffix).unlink(missing_ok=True)
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
