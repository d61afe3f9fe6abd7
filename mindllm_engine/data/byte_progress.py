"""Progress by bytes read: a bar on a terminal, a line from time to time elsewhere (both on stderr)."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_SECONDS_A_LINE = 30.0


class ByteProgress:
    """Shows how much of `total_bytes` has been read. A context manager; nothing is shown outside its block."""

    def __init__(self, title: str, total_bytes: int) -> None:
        self._title = title
        self._total_bytes = total_bytes
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total_bytes)

    def show(self, bytes_read: int) -> None:
        """Tell how many bytes have been read in all."""
        if self._bar is not None:
            self._bar.update(self._task, completed=bytes_read)
        elif time.monotonic() >= self._next_line:
            self._next_line += _SECONDS_A_LINE
            rate = bytes_read / 1e6 / (time.monotonic() - self._start)
            share = bytes_read / max(1, self._total_bytes)
            print(
                f"{self._title}: {bytes_read / 1e6:,.1f} of {self._total_bytes / 1e6:,.1f} MB read ({share:.0%}), "
                f"{rate:.1f} MB/s",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._next_line = self._start + _SECONDS_A_LINE
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
