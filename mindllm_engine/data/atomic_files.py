"""Files that appear complete or not at all, their hashes, and locks between processes."""

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

from mindllm_engine.errors import DataError

HASH_CHUNK_BYTES = 1 << 24


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under another name, flush it to the disk and rename it. Folders are made.

    Raises DataError if it cannot be written (no permission, a full disk).
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DataError:
    """What the system said when `path` was written, as the user's error."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space, or write elsewhere, and run again" if full else "check its folder and its permissions"
    return DataError(f"{path}: cannot be written: {error.strerror}; {remedy}")


def file_hash(path: str | Path) -> str:
    """xxh3_64 of a file, 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive `flock` on `path`, which is made if absent and stays. It ends with the process at the latest.

    `on_wait` is called once if another process holds it. Raises DataError where the file system has no locks.
    """
    file = _locked_file(path, on_wait)
    try:
        yield
    finally:
        file.close()


def _locked_file(path: Path, on_wait: Callable[[], None]) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise DataError(f"{path}: cannot be locked: {error.strerror}; check its folder and its permissions") from error
    return file
