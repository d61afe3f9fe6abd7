"""What a person sees while a run goes on: a progress bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Progress over the steps of a run, on stderr. Made on rank 0 only."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        self.total_steps = total_steps
        self.last_line = float("-inf")
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("training", total=total_steps, completed=first_step, numbers="")
            self.bar.start()

    def show(self, record: dict[str, Any]) -> None:
        """Show the record of a step."""
        numbers = f"loss {record['loss']:.3f}  lr {record['lr']:.2e}  {record['tokens_per_second']:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=record["step"], numbers=numbers)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES or record["step"] == self.total_steps:
            self.last_line = time.monotonic()
            print(f"step {record['step']}/{self.total_steps}  {numbers}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.stop()
