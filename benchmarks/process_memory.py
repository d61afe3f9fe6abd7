"""Memory of a process by the kernel's own count, and functions run in a process of their own so that it can be told."""

import concurrent.futures
import ctypes
import gc
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any


def anonymous_bytes() -> int:
    """Memory of this process that no file backs (RssAnon), after giving back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("RssAnon")


def resident_bytes() -> int:
    """Memory of this process, pages of mapped files included (VmRSS)."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that `resident_bytes` has been since `forget_peak` (VmHWM)."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def in_fresh_process(function: Callable[..., Any], *arguments: Any, limit_bytes: int | None = None) -> Any:
    """What `function` of an importable module returns in a new process.

    limit_bytes: beyond so much more anonymous memory it gets a MemoryError, which is raised here, too.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
        return executor.submit(_limited, limit_bytes, function, arguments).result()


def _limited(limit_bytes: int | None, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if limit_bytes is not None:
        limit = _status("VmData") + limit_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return function(*arguments)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
