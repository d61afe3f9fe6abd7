"""Progress by records: a bar on a terminal, a line from time to time elsewhere (both on stderr)."""

import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_A_LINE = 30.0


class RecordProgress:
    """Shows how many of `total` records are done. A context manager; says nothing where `shown` is false."""

    def __init__(self, title: str, total: int, shown: bool) -> None:
        self._title, self._total, self._shown = title, total, shown
        self._done = 0
        self._start = self._next_line = time.monotonic()
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total)

    def add(self, records: int) -> None:
        """Tell that so many more are done."""
        self._done += records
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif self._shown and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_A_LINE
            rate = self._done / (time.monotonic() - self._start)
            line = f"{self._title}: {self._done:,} of {self._total:,} records, {rate:,.0f} a second"
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._next_line = self._start + _SECONDS_A_LINE
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
