"""Reads batches whose data has to be made ready first: chunks of a remote source fetched, or chunks checked.

Threads of Python do it, some micro-batches ahead of need; a plain local source is read by native threads alone
(data/loader.py).
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mindllm_engine._native as _native
from mindllm_engine.data.remote import RemoteTokenFile, Source
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError

# How often chunks are made ready again that other processes delete before they are read.
ATTEMPTS = 8

Require = Callable[[NDArray[np.int64], NDArray[np.int64]], None]
"""Makes ranges of a source's tokens ready: starts and counts, int64[n]. Raises DataError."""


class PreparedReads:
    """Fills batches by threads, after what they need has been made ready.

    Args:
        reader: `_native.BatchReader` of the sources.
        require: for each source, how its tokens are made ready; None where they are.
        threads: batches that are read at the same time.
    """

    def __init__(self, reader: Any, require: Sequence[Require | None], threads: int) -> None:
        self._reader = reader
        self._require = require
        self._threads = ThreadPoolExecutor(threads, "prepared read")

    def submit(self, samples: NDArray[np.int64], arrays: tuple[NDArray[Any], ...]) -> Future[int]:
        """As `BatchReader.read`, later."""
        return self._threads.submit(self._read, samples, arrays)

    def _read(self, samples: NDArray[np.int64], arrays: tuple[NDArray[Any], ...]) -> int:
        for _ in range(ATTEMPTS):
            for source, stretches in self._by_source(samples).items():
                require = self._require[source]
                if require is not None:
                    require(stretches[:, 2], stretches[:, 3])
            with contextlib.suppress(_native.MissingChunkError):  # deleted by another process
                return self._reader.read(samples, *arrays)
        raise DataError(
            "data.cache_bytes: chunks are deleted before they are read; raise it: the processes of this node need more "
            "at once"
        )

    def _by_source(self, samples: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """The stretches that the samples are made of, by source."""
        found: dict[int, list[NDArray[np.int64]]] = {}
        for sample in samples.tolist():
            source, stretches = self._reader.find(sample)
            found.setdefault(source, []).append(stretches)
        return {source: np.concatenate(parts) for source, parts in found.items()}


def how_to_prepare(file: Source, verify: bool) -> Require | None:
    """What has to happen before tokens of a source are read; None if nothing has to."""
    if isinstance(file, RemoteTokenFile):
        return file.require  # checks what it fetches
    return CheckedChunks(file).require if verify else None


class CheckedChunks:
    """Compares each chunk of a token file with its manifest, once. Thread-safe; two threads may both check one."""

    def __init__(self, file: TokenFile) -> None:
        self._file = file
        self._checked: set[int] = set()

    def require(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Check the chunks of these ranges. Raises DataError for another checksum than the manifest's."""
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            for chunk in self._file.chunks_of(start, count):
                if chunk not in self._checked:
                    self._file.verify_chunk(chunk)
                    self._checked.add(chunk)
