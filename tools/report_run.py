"""Report on a run: `python tools/report_run.py --run runs/demo [--prompts '["Once upon a time"]']`."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.evaluation.report import COLUMNS, cells, make_report


@dataclass
class ReportArguments:
    """Print held-out losses beside baselines, and continuations; write report.html, report.json and loss.png."""

    run: str
    """The run folder."""
    prompts: list[str] = field(default_factory=lambda: ["Once upon a time", "从前"])
    """Texts to continue."""


def main() -> None:
    """Make the report of a run and print it."""
    arguments = parse_arguments(ReportArguments, "Report on a finished or running run, from its folder.")
    report = make_report(Path(arguments.run), arguments.prompts)
    table = Table(
        title=f"{report.parameters:,} parameters, {report.steps:,} steps, {report.tokens:,} tokens",
        caption="loss: nats a token; bpb and the columns after it: bits per byte; own bigram: of that source alone",
    )
    for number, (title, _, _) in enumerate(COLUMNS):
        table.add_column(title, justify="left" if number < 2 else "right", no_wrap=number < 2)
    sources = sum(row.name not in (row.lang, "all") for row in report.rows)
    for number, row in enumerate(report.rows):
        table.add_row(*cells(row), end_section=number == sources - 1)
    console = Console(width=120 if not Console().is_terminal else None)
    console.print(table)
    for prompt, text in report.continuations.items():
        console.print(prompt, style="bold", end="", markup=False, highlight=False)
        console.print(text + "\n", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"run folder  {arguments.run}\nreport      {arguments.run}/report.html\nloss plot   {arguments.run}/loss.png"
    )


if __name__ == "__main__":
    run_tool(main)
