"""Kill a run a hundred times and see that it ends as if nothing had happened:
`python tools/soak.py --config configs/soak.yaml`. Exit code 1 when something was not as it should be."""

import sys
import time
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.errors import ConfigError
from mindllm_engine.training.soak import KINDS, Soak, SoakConfig, Tally, summary
from mindllm_engine.training.soak_files import PHASES

PRETRAIN = Path(__file__).with_name("pretrain.py")
SECONDS_BETWEEN_LINES = 30.0


def main() -> None:
    """Soak, print the tally, and leave with its verdict."""
    config = parse_arguments(SoakConfig, "Kill a run at random moments, and compare it with one in peace.")
    config.validate_soak()
    progress = SoakProgress(config.kills)
    try:
        tally = Soak(config, PRETRAIN, progress.show).run()
    finally:
        progress.close()
    print_tally(tally)
    if config.json is not None:
        write_json(Path(config.json), tally)
    if tally.failures:
        sys.exit(1)


class SoakProgress:
    """A live line on a terminal, a line now and then elsewhere."""

    def __init__(self, kills: int) -> None:
        self.kills = kills
        self.last_line = float("-inf")
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[where]}"), console=Console(stderr=True),
            )  # fmt: skip
            self.task = self.bar.add_task("kills", total=kills, where="")
            self.bar.start()

    def show(self, tally: Tally, where: str) -> None:
        """Show where the soak is."""
        if tally.failures:
            where += f", {len(tally.failures)} failed"
        if self.bar is not None:
            self.bar.update(self.task, completed=len(tally.kills), where=where)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            print(f"{len(tally.kills)} of {self.kills} kills; {where}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line as it stands."""
        if self.bar is not None:
            self.bar.stop()


def print_tally(tally: Tally) -> None:
    """Kills by kind and phase, what they cost, and what failed."""
    console = Console(width=max(120, Console().width), highlight=False)
    table = Table(title="kills", title_justify="left")
    table.add_column("kind", no_wrap=True)
    for title in (*PHASES, "total", "half-written", "steps repeated", "until gone, max"):
        table.add_column(title, justify="right", no_wrap=True)
    kinds = [kind for kind in KINDS if any(kill.kind == kind for kill in tally.kills)]
    for kind in (*kinds, "total"):
        kills = [kill for kill in tally.kills if kind in (kill.kind, "total")]
        table.add_row(
            kind,
            *(str(sum(kill.phase == phase for kill in kills)) for phase in PHASES),
            str(len(kills)),
            str(sum(kill.half_written for kill in kills)),
            str(sum(kill.step - kill.newest_checkpoint for kill in kills)),
            f"{max((kill.seconds_until_gone for kill in kills), default=0.0):.1f} s",
        )
    console.print(table)
    console.print(
        f"{tally.runs_finished} runs finished, {tally.launches} launches, {tally.agent_restarts} restarts by the "
        f"agent, {tally.steps_repeated} steps repeated, {tally.seconds_lost:.0f} s lost of {tally.seconds:.0f} s"
    )
    console.print(f"{len(tally.failures)} failures", style="red" if tally.failures else None)
    for failure in tally.failures:
        console.print(f"  {failure}", markup=False)


def write_json(path: Path, tally: Tally) -> None:
    """Write the tally. Raises ConfigError where that is impossible."""
    try:
        path.write_bytes(orjson.dumps(summary(tally), option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise ConfigError(f"json: cannot write to {path} ({error.strerror}); choose another file") from error


if __name__ == "__main__":
    run_tool(main)
