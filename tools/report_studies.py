"""Join studies on one page: `python tools/report_studies.py runs/studies/scaling runs/studies/wsd --out FILE.html`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool, split_arguments
from mindllm_engine.studies.report import read_findings, write_joint_page


@dataclass
class ReportArguments:
    """Write one self-contained HTML page about several studies, the same claims and plots in Markdown, and print the
    verdicts."""

    out: str
    """The page. The plots and findings.json of each study are copied beside it, in a folder of the study's name."""
    studies: list[str] = field(default_factory=list)
    """The studies' folders; they may also stand first, without the option's name."""


def main() -> None:
    """Read the findings, write the page, print the verdicts."""
    named, options = split_arguments(sys.argv[1:])
    arguments = parse_arguments(ReportArguments, "Join studies on one page.", options)
    studies = {Path(name).name: read_findings(Path(name)) for name in [*named, *arguments.studies]}
    write_joint_page(studies, Path(arguments.out))
    table = Table(title="Verdicts", show_lines=True)
    for column in ("study", "claim", "paper", "here", "verdict"):
        table.add_column(column)
    for name, findings in studies.items():
        for claim in findings.claims:
            table.add_row(name, claim.statement, claim.paper_shown, claim.here, claim.verdict)
    console = Console(width=150 if not Console().is_terminal else None)
    console.print(table, markup=False)
    console.print(f"page      {arguments.out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_tool(main)
