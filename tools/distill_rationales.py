"""Ask a teacher why records have their labels: `python tools/distill_rationales.py --config
configs/tuning/rationales.yaml`."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.tuning.rationales import RationaleConfig, distill_rationales


def main() -> None:
    """Ask, check, write, and say what came of the records."""
    description = "Distil rationales for labelled records from any OpenAI-compatible server, or a file of its answers."
    config = parse_arguments(RationaleConfig, description)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("answers", total=None)
        report = distill_rationales(config, lambda done, total: progress.update(task, completed=done, total=total))
    console = Console()
    kept = Table("class", "kept")
    for name, count in report.kept.items():
        kept.add_row(name, f"{count:,}")
    failures = Table("failure", "records")
    for reason, count in report.failures.most_common():
        failures.add_row(reason, f"{count:,}")
    console.print(kept, failures)
    written = sum(report.kept.values())
    print(f"{config.out}: {written:,} of {report.records:,} records; {report.requests:,} requests sent")


if __name__ == "__main__":
    run_tool(main)
