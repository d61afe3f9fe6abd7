"""Report on runs: `python tools/report.py runs/demo`, or several side by side with `--out FILE.html`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool, split_arguments
from mindllm_engine.evaluation.heldout_table import COLUMNS, cells
from mindllm_engine.evaluation.report import PAGE_FILE, make_report
from mindllm_engine.evaluation.run_facts import RunFacts


@dataclass
class ReportArguments:
    """Write one self-contained HTML page about one run or several, and print the losses."""

    runs: list[str] = field(default_factory=list)
    """The run folders; they may also stand first, without the option's name."""
    out: str | None = None
    """The page; by default report.html in the folder of the only run."""
    prompts: list[str] = field(default_factory=lambda: ["Once upon a time", "从前"])
    """Texts to continue, or, for tuned networks, to answer."""


def main() -> None:
    """Make the report and print its tables."""
    named, options = split_arguments(sys.argv[1:])
    arguments = parse_arguments(ReportArguments, "Report on finished or running runs, from their folders.", options)
    folders = [Path(run) for run in [*named, *arguments.runs]]
    out = Path(arguments.out) if arguments.out else None
    runs = make_report(folders, arguments.prompts, out)
    console = Console(width=120 if not Console().is_terminal else None)
    for run in runs:
        print_run(console, run)
    console.print(f"report      {out or folders[0] / PAGE_FILE}")
    if len(runs) == 1:
        console.print(f"loss plot   {folders[0]}/loss.png")


def print_run(console: Console, run: RunFacts) -> None:
    """The table of losses, and the continuations."""
    table = Table(
        title=f"{run.name}: {run.parameters:,} parameters, {run.steps:,} steps, {run.tokens:,} tokens",
        caption="loss: nats a token; bpb and the columns after it: bits per byte; own bigram: of that source alone",
    )
    for number, (title, _, _) in enumerate(COLUMNS):
        table.add_column(title, justify="left" if number < 2 else "right", no_wrap=number < 2)
    sources = sum(row.name not in (row.lang, "all") for row in run.rows)
    for number, row in enumerate(run.rows):
        table.add_row(*cells(row), end_section=number == sources - 1)
    console.print(table)
    if run.note:
        console.print(run.note, markup=False)
    for prompt, text in run.continuations.items():
        console.print(prompt, style="bold", end="", markup=False, highlight=False)
        console.print(text + "\n", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_tool(main)
