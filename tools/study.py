"""Run an experiment of the papers: `python tools/study.py --config configs/studies/scaling.yaml`, or under torchrun."""

from rich.console import Console
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.distributed.launcher import end_with_launcher
from mindllm_engine.studies.report import read_findings
from mindllm_engine.studies.study import StudyConfig, run_study


def main() -> None:
    """Parse a study's configuration, bring its trials to their end, analyse them, and print the claims."""
    end_with_launcher()
    page = run_study(parse_arguments(StudyConfig, "Train the runs of a study that are missing, and analyse them all."))
    if page is None:
        return
    findings = read_findings(page.parent)
    table = Table(title=findings.title, show_lines=True)
    for column in ("claim", "paper", "here", "verdict"):
        table.add_column(column)
    for claim in findings.claims:
        table.add_row(claim.statement, claim.paper_shown, claim.here, claim.verdict)
    console = Console(width=140 if not Console().is_terminal else None)
    console.print(table, markup=False)
    for entry in findings.left_out:
        console.print(f"left out: {entry.name}: {entry.reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"page      {page}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_tool(main)
