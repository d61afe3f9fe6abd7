"""What the system and the native module raise about a file, as the one line of a `DataError`."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mindllm_engine.errors import DataError


def reading(path: Path) -> contextlib.AbstractContextManager[None]:
    """Around reading a token file or its manifest; `path` is named if the error names no file."""
    return _as_data_error(path, "check the path, or build the token file first", "restore or rebuild the token file")


def writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """Around writing them."""
    return _as_data_error(path, "make its folder first", "give documents of one tokenizer, and the dtype of its ids")


@contextlib.contextmanager
def _as_data_error(path: Path, missing_remedy: str, invalid_remedy: str) -> Iterator[None]:
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
