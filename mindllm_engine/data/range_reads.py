"""Range reads of remote files over fsspec, with retries, and several at once. Every failure becomes one clear line."""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mindllm_engine.errors import DataError

ATTEMPTS = 8
FIRST_DELAY_SECONDS = 0.5
"""The pause after the first failure; it doubles each time, so that a minute passes before the last attempt."""

ATTEMPT_SECONDS = 120.0
"""How long one read may take, where the protocol's library can be stopped."""

_AT_ONCE = 8
"""Reads in flight: enough to hide the latency of object storage."""

_LISTEN_SECONDS = 0.5
"""How often the waiting thread looks for a signal that did not wake it: one that another thread received, or that came
just before it lay down."""

_AGAIN = (408, 425, 429)
"""The HTTP statuses from 400 to 499 that tell the client to come back."""


class RemoteFile:
    """A file at a URL. Thread-safe. Opening it reads nothing.

    Raises:
        DataError: the protocol is unknown, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec
        from fsspec.asyn import AsyncFileSystem

        self.url = url
        protocol = url.split("://")[0]
        # Compressed on its way, a range would be a range of something else.
        options = {"headers": {"Accept-Encoding": "identity"}} if protocol in ("http", "https") else {}
        try:
            self._system, self._path = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise DataError(
                f"{url}: the library for {protocol}:// is missing ({_one_line(error)}); "
                f"install it with pip install 'mindllm-engine[remote]'"
            ) from error
        except ValueError as error:
            raise DataError(f"{url}: {_one_line(error)}; check the URL") from error
        self._options: dict[str, Any] = {}
        if isinstance(self._system, AsyncFileSystem):
            self._options["timeout"] = ATTEMPT_SECONDS

    def read(self, start: int, end: int, part: str, stop: threading.Event | None = None) -> bytes:
        """Bytes [start, end), all of them. `part` says what they are, for the errors; `stop` ends the pauses between
        attempts.

        Raises:
            DataError: what cannot be mended by trying again, or did not end within `ATTEMPTS`.
        """
        where = f"{self.url}: {part} (bytes {start} to {end - 1})"

        def once() -> bytes:
            content = self._system.cat_file(self._path, start=start, end=end, **self._options)
            if len(content) > end - start:
                raise DataError(
                    f"{where}: the server sent {len(content)} bytes, not these {end - start}; it must serve ranges"
                )
            if len(content) < end - start:
                raise EOFError(f"the answer was cut short, {len(content)} of {end - start} bytes")
            return content

        return _with_retries(once, where, stop or threading.Event())

    def read_all(self, part: str) -> bytes:
        """The whole file. Raises DataError as `read` does."""
        return _with_retries(
            lambda: self._system.cat_file(self._path, **self._options), f"{self.url}: {part}", threading.Event()
        )


def _with_retries(read: Callable[[], bytes], where: str, stop: threading.Event) -> bytes:
    begin = time.monotonic()
    for attempt in range(ATTEMPTS):
        if attempt:
            # Spread out, so that the ranks of a cluster do not come back all at once.
            stop.wait(FIRST_DELAY_SECONDS * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1))
            if stop.is_set():
                break
        try:
            return read()
        except DataError:
            raise
        except Exception as error:  # each protocol has a library of its own, with its own errors
            last = error
            lasting = _lasting(error)
            if lasting is not None:
                cause, remedy = lasting
                raise DataError(f"{where}: {cause}; {remedy}") from error
    raise DataError(
        f"{where}: {_cause(last)} ({attempt + 1} attempts in {time.monotonic() - begin:.0f} s); check the network and "
        f"the server, then start again: what has been fetched is kept"
    ) from last


def _lasting(error: Exception) -> tuple[str, str] | None:
    """Cause and remedy of an error that another attempt will not mend; None for any other."""
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(error, FileNotFoundError):
        return "missing", "check the URL"
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"no permission ({_cause(error)})", "give credentials that may read it"
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):  # botocore's, which may be absent
        return "no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if status == 416 or "InvalidRange" in _codes(error):
        return "the file ends before them", "it is not the one its manifest describes: upload all three files again"
    if isinstance(status, int) and 400 <= status < 500 and status not in _AGAIN:
        return _cause(error), "check the URL and the server"
    return None


def _codes(error: Exception) -> str:
    """S3's own name of an error, which s3fs keeps in the error it was made from."""
    response = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) and "Error" in response else ""


def _cause(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP status {status}"
    if isinstance(error, TimeoutError) and not str(error):  # fsspec's
        return f"no complete answer within {ATTEMPT_SECONDS:.0f} s"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def in_parallel(work: Callable[[int, threading.Event], None], items: Sequence[int]) -> None:
    """Call `work(item, stop)` for each item on a few threads; return when all are done, or raise the first error.

    `stop` is set when the others need not go on. Ctrl-C is not held up: the threads are daemons.
    """
    stop = threading.Event()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(item, stop)
            except BaseException as error:  # raised again by the caller's thread
                done.put(error)
                return
            done.put(None)

    try:
        for _ in range(min(_AT_ONCE, len(items))):
            threading.Thread(target=run, daemon=True, name="range read").start()
        for _ in items:
            error = _next(done)
            if error is not None:
                raise error
    finally:
        stop.set()


def _next(done: "queue.SimpleQueue[BaseException | None]") -> BaseException | None:
    """The next entry; a signal's handler runs while there is none."""
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=_LISTEN_SECONDS)
