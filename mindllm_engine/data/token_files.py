"""Reads token files: `<prefix>.bin` and `<prefix>.idx` in Megatron's format, and `<prefix>.json`, the manifest.

The native module reads the pair (csrc/token_file_reader.hpp); data/manifest.py tells what the tokens are, and
data/token_file_builder.py writes all three. Every mistake of the user's becomes a `DataError`.

Opening looks at the ends of the files only. `TokenFile.verify` reads everything, with threads, and by system calls
rather than through the map: a file that is cut short or overwritten meanwhile is an error like any other.
"""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

import mindllm_engine._native as _native
from mindllm_engine.data.file_errors import reading
from mindllm_engine.data.loss_mask import check_size, open_mask
from mindllm_engine.data.manifest import Manifest, with_suffix
from mindllm_engine.errors import DataError

_PIECE_BYTES = 1 << 20
"""Read, hashed and compared at a time, to stay in a core's cache. A multiple of the size of every type of ids."""


class IndexedTokens:
    """What the index tells of a source, wherever its data lies."""

    reader: Any
    """The `_native.TokenFileReader` of the index."""

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


class TokenFile(IndexedTokens):
    """A token file opened for reading: the native reader and the manifest, which agree with each other.

    The tokens are one stream, numbered from 0, which the documents divide. Nothing is loaded: arrays are views of a
    memory map. Safe to share among threads. Ranges and documents that do not exist raise IndexError; an index whose
    damage opening could not see raises DataError where it is used.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Open `<prefix>.bin`, `.idx` and `.json`, and check the manifest, the sizes and the ends of the index: in a
        time that does not grow with the tokens. The rest is left to `verify`.

        Raises DataError if one of them is missing, damaged or does not match the others.
        """
        self.prefix = Path(prefix)
        self.manifest = Manifest.load(prefix)
        self.packings: dict[int, Any] = {}  # by seq_len; see data/stream.py
        with reading(self.prefix):
            self.reader = _native.TokenFileReader(self.prefix, thorough=False)
        self.manifest.check_index(self.prefix, self.reader)
        check_size(self.prefix, self.manifest)

    @property
    def index_path(self) -> Path:
        """Where the index lies."""
        return with_suffix(self.prefix, ".idx")

    @cached_property
    def bytes(self) -> Any:
        """The data, for the native code: `_native.TokenBytes`. Raises DataError if it cannot be opened."""
        with reading(self.prefix):
            return _native.LocalBytes(with_suffix(self.prefix, ".bin"))

    @cached_property
    def mask(self) -> npt.NDArray[np.uint8] | None:
        """What is learnt, uint8[tokens] (data/loss_mask.py); None where all is. Raises DataError for a damaged one."""
        return open_mask(self.prefix, self.manifest)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of each document in tokens, int64[documents]; made anew on each access."""
        with reading(self.prefix):
            return self.reader.lengths

    def document(self, index: int) -> npt.NDArray[Any]:
        """A read-only view of a document's ids, [tokens of the document] of `dtype`."""
        with reading(self.prefix):
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
        with reading(self.prefix):
            stray = self.reader.find_stray(vocab_size)
        if stray is not None:
            document, position, token = stray
            raise DataError(
                f"{self.prefix}.bin: token id {token} at position {position} of document {document} is outside the "
                f"vocabulary of {vocab_size}; tokenize the text again with the right tokenizer"
            )

    def chunks_of(self, start_token: int, count: int) -> range:
        """The chunks of the manifest that hold `count` tokens of the stream from `start_token` on."""
        if count == 0:
            return range(0)
        chunk, item = self.manifest.chunk_bytes, self.dtype.itemsize
        return range(start_token * item // chunk, -(-(start_token + count) * item // chunk))

    def verify(self, progress: Callable[[int], None] | None = None, workers: int = 1) -> None:
        """Read all of the three files and raise DataError for the first damage; the parameters are `find_damage`'s."""
        for damage in self.find_damage(progress, workers):
            raise damage

    def verify_chunk(self, number: int) -> None:
        """Read one chunk of the .bin; raise DataError for another checksum than the manifest's, with the chunk's bytes
        and documents, and for an id outside the vocabulary."""
        damage = self._damage_of_chunk(number)
        if damage is not None:
            raise damage

    def find_damage(self, progress: Callable[[int], None] | None = None, workers: int = 1) -> Iterator[DataError]:
        """Read all of the three files and yield what is wrong: first of the index, then of the chunks, in order.

        What is found does not depend on `workers`, the number of threads. `progress` is told now and then, from the
        calling thread, how many bytes of the .idx and .bin have been checked. A file that cannot be read ends it.
        """
        report = progress or (lambda _: None)
        try:
            Manifest.load(self.prefix)  # as it is now
            yield from self._damage_of_index()
            checked = self._index_bytes()
            report(checked)
            for number, future in _in_order(self._damage_of_chunk, len(self.manifest.chunks), workers):
                damage = future.result()
                if damage is not None:
                    yield damage
                report(checked + min((number + 1) * self.manifest.chunk_bytes, self.manifest.data_bytes))
            open_mask(self.prefix, self.manifest)
        except DataError as error:
            yield error

    def _index_bytes(self) -> int:
        with reading(self.prefix):
            return with_suffix(self.prefix, ".idx").stat().st_size

    def _damage_of_index(self) -> Iterator[DataError]:
        try:
            with reading(self.prefix):
                self.reader.check_index()
        except DataError as error:
            yield error  # says more than the checksum, which would be another too
            return
        with reading(self.prefix):
            found = index_checksum(self.prefix)
        if found != self.manifest.index_checksum:
            yield DataError(
                f"{self.prefix}.idx: damaged: its checksum is {found}, the manifest says "
                f"{self.manifest.index_checksum}; restore the file from a copy or rebuild it"
            )

    def _damage_of_chunk(self, number: int) -> DataError | None:
        """What is wrong with a chunk that can be read; raises DataError for one that cannot."""
        start = number * self.manifest.chunk_bytes
        end = min(start + self.manifest.chunk_bytes, self.manifest.data_bytes)
        item = self.dtype.itemsize
        hasher = xxhash.xxh3_64()
        stray: tuple[int, int] | None = None  # the first id outside the vocabulary, and its place in the stream
        buffer = np.empty(min(_PIECE_BYTES, end - start), np.uint8)
        for at in range(start, end, _PIECE_BYTES):
            piece = buffer[: end - at]
            with reading(self.prefix):
                self.reader.read_data(at, piece)
            hasher.update(piece.data)
            ids = piece.view(self.dtype)
            if stray is None and not 0 <= int(ids.min()) <= int(ids.max()) < self.manifest.vocab_size:
                place = int(np.argmax((ids < 0) | (ids >= self.manifest.vocab_size)))
                stray = int(ids[place]), at // item + place
        found, expected = hasher.hexdigest(), self.manifest.chunks[number]
        if found != expected:
            return DataError(
                f"{self.prefix}.bin: damaged: chunk {number}, from byte {start} to {end - 1}, with "
                f"{self._documents_between(start // item, (end - 1) // item)}, has checksum {found}, the manifest says "
                f"{expected}; restore the file from a copy or rebuild it"
            )
        if stray is not None:
            token, place = stray
            return DataError(
                f"{self.prefix}.bin: token id {token} at token {place} of the file, in "
                f"{self._documents_between(place, place)}, is outside the vocabulary of {self.manifest.vocab_size}; "
                f"tokenize the text again with the right tokenizer"
            )
        return None

    def _documents_between(self, first_token: int, last_token: int) -> str:
        try:
            with reading(self.prefix):
                first, last = (self.reader.document_of(token) for token in (first_token, last_token))
        except DataError:
            return "documents that the index, which is damaged too, does not tell"
        return f"document {first}" if first == last else f"documents {first} to {last}"


def index_checksum(prefix: str | Path) -> str:
    """The xxh3_64 of `<prefix>.idx` as it is on the disk, 16 hexadecimal digits. Raises OSError."""
    hasher, buffer = xxhash.xxh3_64(), bytearray(_PIECE_BYTES)
    with with_suffix(prefix, ".idx").open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            hasher.update(memoryview(buffer)[:size])
    return hasher.hexdigest()


def _in_order(
    check: Callable[[int], DataError | None], count: int, workers: int
) -> Iterator[tuple[int, Future[DataError | None]]]:
    """`check` of 0, 1, ... count - 1 in threads, a few at a time, each yielded with its number when it is done."""
    pending: collections.deque[tuple[int, Future[DataError | None]]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for number in range(count):
            if len(pending) == 2 * workers:
                yield pending.popleft()
            pending.append((number, pool.submit(check, number)))
        yield from pending
