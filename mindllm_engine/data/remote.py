"""Sources in object storage, read as local ones are: `s3://bucket/corpus/en_web` is a prefix like any other.

The manifest and the index are fetched whole; the data comes chunk by chunk, the chunks that the manifest has checksums
of, when a sample first needs them. What has been fetched lies in a cache folder (data/cache_folder.py):

    <cache>/<hash of the content>/0, 1, ...      chunks of the .bin, checked on arrival
                                  source.idx     the index
                                  source.bin     the data, and source.json, of a source that was fetched whole

The folder is named by content, so another content under the same URL never mixes with what was fetched before.
Credentials and endpoints are those of the protocol's library: AWS_PROFILE, AWS_ENDPOINT_URL and so on.
"""

import contextlib
import os
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

import mindllm_engine._native as _native
from mindllm_engine.data.atomic_files import cannot_write, exclusive_lock, file_hash, write_atomically
from mindllm_engine.data.byte_progress import ByteProgress
from mindllm_engine.data.cache_folder import CacheFolder, touch
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.range_reads import RemoteFile, in_parallel
from mindllm_engine.data.token_files import IndexedTokens, TokenFile
from mindllm_engine.errors import DataError

_INDEX_PIECE_BYTES = 8 << 20
_INDEX_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, type code, sequences, documents + 1: all that the size of an index depends on."""

_GATHER_ATTEMPTS = 8
"""How often chunks are fetched again that others delete before they are read."""


def is_remote(prefix: str | Path) -> bool:
    """Whether a source's prefix is a URL."""
    return "://" in str(prefix)


def open_source(prefix: str | Path, cache: CacheFolder | None) -> "TokenFile | RemoteTokenFile":
    """The source at a path or a URL, its manifest and index checked as `TokenFile` does.

    Raises:
        DataError: it is missing, damaged or out of reach, or it is remote and there is no cache folder.
    """
    return RemoteTokenFile(str(prefix), _required(prefix, cache)) if is_remote(prefix) else TokenFile(prefix)


def open_whole(prefix: str | Path, cache: CacheFolder | None) -> TokenFile:
    """The source at a path or a URL as a local file: a remote one is fetched whole first, once a node. For sources of
    which everything is read, such as held-out documents. Raises DataError as `open_source` does."""
    return fetch_whole(str(prefix), _required(prefix, cache)) if is_remote(prefix) else TokenFile(prefix)


def _required(prefix: str | Path, cache: CacheFolder | None) -> CacheFolder:
    if cache is None:
        raise DataError(f"{prefix}: a remote source needs a folder to keep what is fetched; set data.cache")
    return cache


@dataclass
class CacheStatistics:
    """What a cache has done so far."""

    hits: int = 0
    """Chunks that were required and there."""
    fetches: int = 0
    """Chunks that were fetched."""
    bytes: int = 0
    """Bytes of chunks that were fetched."""


class ChunkCache:
    """The chunks of a remote .bin that are here, and the way to the others. Thread-safe.

    Threads or processes that need the same chunk at the same time may both fetch it; either copy serves.

    Attributes:
        folder: where the chunks lie, each under its number.
        statistics: what this object has done so far.
    """

    def __init__(self, url: str, manifest: Manifest, cache: CacheFolder) -> None:
        """`url` is the source's prefix. Reads and writes nothing; raises DataError for a protocol that is unknown."""
        self.folder = cache.path / manifest.content
        self.statistics = CacheStatistics()
        self._place = str(self.folder)  # paths are slow to join, and `require` comes with each batch
        self._url = url
        self._manifest = manifest
        self._cache = cache
        self._data_bytes = manifest.data_bytes
        self._file = RemoteFile(f"{url}.bin")
        self._lock = threading.Lock()

    def require(self, chunks: Iterable[int]) -> None:
        """Have these chunks in the folder when it returns, unless another process deletes them at once.

        Raises:
            IndexError: there is no such chunk.
            DataError: one cannot be fetched or kept, or they do not fit `cache_bytes` together.
        """
        required = sorted(set(chunks))
        if required and not 0 <= required[0] <= required[-1] < len(self._manifest.chunks):
            raise IndexError(f"{self._url}.bin: no such chunk among {len(self._manifest.chunks)}: {required}")
        missing = [chunk for chunk in required if not touch(f"{self._place}/{chunk}", self._size(chunk))]
        with self._lock:
            self.statistics.hits += len(required) - len(missing)
        if not missing:
            return
        total = sum(self._size(chunk) for chunk in required)
        if self._cache.cache_bytes is not None and total > self._cache.cache_bytes:
            raise DataError(
                f"{self._cache.path}: cache_bytes of {self._cache.cache_bytes} cannot hold the {total} bytes of chunks "
                f"that one read of {self._url} needs; raise it"
            )
        wanted = sum(self._size(chunk) for chunk in missing)
        self._cache.make_room(wanted, keep={self._path(chunk) for chunk in required})
        in_parallel(self._fetch, missing)

    def _fetch(self, chunk: int, stop: threading.Event) -> None:
        content = fetch_chunk(self._file, self._manifest, chunk, stop)
        write_atomically(self._path(chunk), content)
        with self._lock:
            self.statistics.fetches += 1
            self.statistics.bytes += len(content)

    def _path(self, chunk: int) -> Path:
        return self.folder / str(chunk)

    def _size(self, chunk: int) -> int:
        return min(self._manifest.chunk_bytes, self._data_bytes - chunk * self._manifest.chunk_bytes)


class RemoteTokenFile(IndexedTokens):
    """A remote source opened for reading, in the manner of `TokenFile`. It has no mask. Thread-safe.

    Attributes:
        prefix: its URL, without the ending.
        manifest: the manifest as it was on opening.
        index_path: where the index lies in the cache.
        reader: the index, for documents and their places. It knows no tokens: never read tokens by it.
        mask: None, all of it is learnt.
        chunks: the cache of its data.
        bytes: the data, for the native code; reading a chunk that is not here raises MissingChunkError.
    """

    mask: npt.NDArray[np.uint8] | None = None

    def __init__(self, url: str, cache: CacheFolder) -> None:
        """Fetch the manifest, and the index unless it is in the cache. Raises DataError."""
        self.prefix = url
        self._cache = cache
        self.manifest, _ = fetch_manifest(url)
        if self.manifest.mask:
            raise DataError(f"{url}: what is learnt of a remote source cannot be told; copy the files to this machine")
        self.chunks = ChunkCache(url, self.manifest, cache)
        self.packings: dict[int, Any] = {}  # by seq_len; see data/stream.py
        self.index_path = fetch_index(url, self.manifest, self.chunks.folder)
        self.reader = _open_index(self.index_path, self.manifest.data_bytes)
        self.manifest.check_index(url, self.reader)
        self.bytes = _native.ChunkFolderBytes(self.chunks.folder, self.manifest.chunk_bytes, self.manifest.data_bytes)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of each document in tokens, int64[documents]; made anew on each access."""
        return self.reader.lengths

    def check(self, tokenizer_hash: str | None = None, vocab_size: int | None = None) -> None:
        """Raise DataError if another tokenizer made the ids, or if a model's vocabulary is too small for them."""
        self.manifest.check_use(self.prefix, tokenizer_hash, vocab_size)

    def whole(self) -> TokenFile:
        """The source as a local file, fetched once a node. Raises DataError."""
        return fetch_whole(self.prefix, self._cache)

    def require(self, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        """Fetch what these ranges of the stream need and is not here.

        starts, counts: int64[n], in tokens. IndexError for a range outside the stream; DataError as `ChunkCache`.
        """
        if np.any((starts < 0) | (counts < 0) | (starts > self.tokens) | (counts > self.tokens - starts)):
            raise IndexError(f"{self.prefix}: a range outside its {self.tokens} tokens")
        some = counts > 0
        first = starts[some] * self.dtype.itemsize // self.manifest.chunk_bytes
        last = ((starts[some] + counts[some]) * self.dtype.itemsize - 1) // self.manifest.chunk_bytes
        chunks: set[int] = set()
        for begin, end in zip(first.tolist(), last.tolist(), strict=True):
            chunks.update(range(begin, end + 1))
        self.chunks.require(chunks)

    def gather(
        self, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], out: npt.NDArray[np.int32 | np.int64]
    ) -> None:
        """Copy n ranges of the stream back to back to `out`, fetching what is not here.

        starts, counts: int64[n], in tokens; out: int32 or int64, with exactly sum(counts) items.
        """
        if int(counts.sum()) != len(out):
            raise IndexError(f"{self.prefix}: {int(counts.sum())} tokens do not make the {len(out)} of out")
        for _ in range(_GATHER_ATTEMPTS):
            self.require(starts, counts)
            with contextlib.suppress(_native.MissingChunkError):  # deleted by another process
                self._copy(starts, counts, out)
                return
        raise DataError(
            f"{self.chunks.folder}: chunks are deleted before they are read; raise cache_bytes: the processes of this "
            f"node need more at once"
        )

    def _copy(
        self, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], out: npt.NDArray[np.int32 | np.int64]
    ) -> None:
        item, done = self.dtype.itemsize, 0
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            out[done : done + count] = np.frombuffer(self.bytes.read(start * item, count * item), self.dtype)
            done += count


Source = TokenFile | RemoteTokenFile
"""What samples are read from: both have prefix, manifest, index_path, reader, bytes, packings, tokens and documents."""


def fetch_manifest(url: str) -> tuple[Manifest, bytes]:
    """The manifest of the source at `url`, and the text it was read from. Raises DataError."""
    file = RemoteFile(f"{url}.json")
    file.read(0, 1, "the manifest")  # refuses a server that sends whole files, while they are small
    content = file.read_all("the manifest")
    return Manifest.parse(content, file.url), content


def fetch_index(url: str, manifest: Manifest, folder: Path) -> Path:
    """The path of the index in the cache; fetched if it is not there, by one process at a time. Raises DataError."""
    target = folder / "source.idx"
    with _one_at_a_time(url, folder):
        if not target.exists():
            file = RemoteFile(f"{url}.idx")
            end = _index_bytes(file, manifest)
            pieces = [(start, min(start + _INDEX_PIECE_BYTES, end)) for start in range(0, end, _INDEX_PIECE_BYTES)]

            def read(piece: int, stop: threading.Event) -> bytes:
                return file.read(*pieces[piece], "the index", stop)

            def check(staged: Path) -> bool:
                return file_hash(staged) == manifest.index_checksum

            if not (
                _download(target, file.url, pieces, read, check) or _download(target, file.url, pieces, read, check)
            ):
                raise _differs(url, ".idx", "the index")
    return target


def fetch_whole(url: str, cache: CacheFolder) -> TokenFile:
    """The source at `url`, copied to the cache by one process at a time. Raises DataError."""
    manifest, text = fetch_manifest(url)
    folder = cache.path / manifest.content
    fetch_index(url, manifest, folder)
    target = folder / "source.bin"
    with _one_at_a_time(url, folder):
        if not target.exists():
            file = RemoteFile(f"{url}.bin")
            size, step = manifest.data_bytes, manifest.chunk_bytes
            pieces = [(start, min(start + step, size)) for start in range(0, size, step)]

            def read(piece: int, stop: threading.Event) -> bytes:
                return fetch_chunk(file, manifest, piece, stop)

            _download(target, file.url, pieces, read, lambda staged: True)
        write_atomically(folder / "source.json", text)
        return TokenFile(folder / "source")


def fetch_chunk(file: RemoteFile, manifest: Manifest, chunk: int, stop: threading.Event) -> bytes:
    """A chunk of the .bin, which `file` is, with the checksum that the manifest has for it. Raises DataError."""
    start = chunk * manifest.chunk_bytes
    end = min(start + manifest.chunk_bytes, manifest.data_bytes)
    for _ in range(2):  # once more, should it have been damaged on its way
        content = file.read(start, end, f"chunk {chunk}", stop)
        if xxhash.xxh3_64_hexdigest(content) == manifest.chunks[chunk]:
            return content
    raise _differs(file.url.removesuffix(".bin"), ".bin", f"chunk {chunk} (bytes {start} to {end - 1})", manifest)


def _differs(url: str, suffix: str, part: str, manifest: Manifest | None = None) -> DataError:
    """Says which it is: the source was replaced since its manifest was read, or it is damaged."""
    with contextlib.suppress(DataError):
        if manifest is not None and fetch_manifest(url)[0] != manifest:
            return DataError(
                f"{url}{suffix}: {part} has changed since the manifest was read: the source was replaced; start again "
                f"with the new one, or restore the old"
            )
    return DataError(
        f"{url}{suffix}: damaged: {part} has not the checksum that the manifest says, twice; upload the file again"
    )


def _index_bytes(file: RemoteFile, manifest: Manifest) -> int:
    """The size of an index by its header."""
    magic, _, _, sequences, starts = _INDEX_HEADER.unpack(file.read(0, _INDEX_HEADER.size, "the index's header"))
    if magic != b"MMIDIDX\0\0" or starts != manifest.documents + 1:
        raise DataError(
            f"{file.url}: it is not the index of the {manifest.documents} documents of its manifest; upload all three "
            f"files of the source again"
        )
    return _INDEX_HEADER.size + 12 * sequences + 8 * starts


def _download(
    target: Path,
    title: str,
    pieces: Sequence[tuple[int, int]],
    read: Callable[[int, threading.Event], bytes],
    check: Callable[[Path], bool],
) -> bool:
    """Fetch a file piece by piece, several at once, with progress on stderr. False, and no file, if `check` refuses."""
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    lock = threading.Lock()
    fetched = 0
    try:
        with staged.open("wb") as out, ByteProgress(title, pieces[-1][1] if pieces else 0) as progress:

            def fetch(piece: int, stop: threading.Event) -> None:
                nonlocal fetched
                content = read(piece, stop)
                _write_at(out.fileno(), content, pieces[piece][0])
                with lock:
                    fetched += len(content)
                    progress.show(fetched)

            in_parallel(fetch, range(len(pieces)))
            os.fsync(out.fileno())
        if not check(staged):
            return False
        staged.replace(target)
        return True
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        staged.unlink(missing_ok=True)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextlib.contextmanager
def _one_at_a_time(url: str, folder: Path) -> Iterator[None]:
    def on_wait() -> None:
        print(f"{url}: another process is fetching it; waiting for it", file=sys.stderr, flush=True)

    with exclusive_lock(folder / ".lock", on_wait):
        yield


def _open_index(index: Path, data_bytes: int) -> _native.TokenFileReader:
    """The native reader over an index whose data is elsewhere: over a file of the right size that takes no room, which
    is gone as soon as it is mapped, so that nobody ever takes its zeros for tokens."""
    try:
        with tempfile.TemporaryDirectory(dir=index.parent, prefix=".open-") as folder:
            prefix = Path(folder) / "source"
            os.symlink(index.absolute(), f"{prefix}.idx")
            with open(f"{prefix}.bin", "wb") as data:
                data.truncate(data_bytes)
            return _native.TokenFileReader(prefix, thorough=False)
    except OSError as error:
        raise cannot_write(index.parent, error) from error
    except ValueError as error:
        raise DataError(f"{index}: the cached index is damaged: {error}; delete it and start again") from error
