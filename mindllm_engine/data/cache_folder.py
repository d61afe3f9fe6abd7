"""The local folder in which chunks of remote sources are kept (data/remote.py): one folder a content, within a limit.

All processes of a node share it. A chunk appears complete, by a rename; what was used longest ago is deleted first, and
may be deleted while another process reads it: an open file stays readable, and who finds it gone fetches it again.
"""

import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from mindllm_engine.data.atomic_files import cannot_write, write_atomically

_CONTENT = re.compile("[0-9a-f]{16}")
"""The name of a folder of chunks, a hash. Nothing is ever deleted in any other."""

_STALE_SECONDS = 3600.0
"""A temporary file not written for so long belongs to a process that was killed."""

_TOUCH_SECONDS = 1.0
"""The time of last use is no finer than this: most batches then only look."""


class CacheFolder:
    """Keeps the chunk files under a folder near a limit, by the time of their last use. Thread-safe.

    Args:
        path: the folder; made if absent.
        cache_bytes: what the chunks of all sources may take together; None for no limit. Processes count for themselves
            and look at the folder now and then, so together they may exceed it by a sixteenth each. Indices and files
            that were fetched whole do not count and are never deleted.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, cache_bytes: int | None = None) -> None:
        self.path = Path(path)
        self.cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._bytes: int | None = None  # as counted last, and what this process has added since
        self._added = 0
        probe = self.path / "probe"
        write_atomically(probe, b"")
        probe.unlink(missing_ok=True)

    def make_room(self, wanted: int, keep: Collection[Path]) -> None:
        """Delete chunks, but none of `keep`, until `wanted` more bytes stay within the limit. DataError if it cannot
        delete."""
        if self.cache_bytes is None:
            return
        slack = self.cache_bytes // 16
        with self._lock:
            self._added += wanted
            if self._bytes is None or self._bytes + wanted > self.cache_bytes or self._added > slack:
                chunks = sorted(self._chunks())
                self._bytes = sum(size for _, size, _ in chunks)
                self._added = wanted
                if self._bytes + wanted > self.cache_bytes:
                    # Some more than is wanted now, so that the next chunks need no look at the folder.
                    self._delete(chunks, self.cache_bytes - slack - wanted, keep)
            self._bytes += wanted

    def _delete(self, chunks: list[tuple[int, int, Path]], target: int, keep: Collection[Path]) -> None:
        """Delete the first of `chunks`, which are in the order of their last use, until `target` bytes are left."""
        assert self._bytes is not None
        for _, size, path in chunks:
            if self._bytes <= target:
                break
            if path not in keep:
                _unlink(path)
                self._bytes -= size

    def _chunks(self) -> Iterator[tuple[int, int, Path]]:
        """When it was used last in ns, size in bytes, and path of each chunk there is; stale temporary files go."""
        for folder in _entries(self.path):
            if not _CONTENT.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
                continue
            for entry in _entries(folder.path):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # another process deleted or renamed it
                    continue
                if entry.name.isdigit():
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)
                elif entry.name.endswith(".tmp") and time.time() - status.st_mtime > _STALE_SECONDS:
                    _unlink(Path(entry.path))


def touch(path: str, size: int) -> bool:
    """Whether a file of exactly `size` bytes is there; if so, it counts as used now, to the second."""
    try:
        status = os.stat(path)
        if status.st_size != size:
            return False
        if time.time() - status.st_mtime > _TOUCH_SECONDS:
            os.utime(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(Path(path), error) from error
    return True


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
