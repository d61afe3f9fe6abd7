"""Choose law data for tuning by its lengths: `python tools/prepare_law.py --config configs/tuning/law.yaml`."""

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.tuning.law import LawConfig, LawReport, prepare_law


def main() -> None:
    """Filter, balance, write, and say what came of the records."""
    description = "Choose law data for tuning: ranges of lengths by two tokenizers, with balanced numbers of records."
    config = parse_arguments(LawConfig, description)
    columns = (TextColumn("{task.completed:,} records read"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("records", total=None)
        report = prepare_law(config, lambda records: progress.update(task, completed=records))
    print_tables(report)
    print(f"{config.out}: {sum(report.kept.values()):,} of {report.records:,} records")


def print_tables(report: LawReport) -> None:
    """Ranges before and after, and reasons."""
    console = Console()
    ranges = Table("tokens", "records", "kept", "of which", title="Lengths")
    for name, found in report.found.items():
        kinds = ", ".join(f"{kind or 'no kind'} {count:,}" for kind, count in report.kinds[name].items())
        ranges.add_row(name, f"{found:,}", f"{report.kept[name]:,}", kinds)
    console.print(ranges)
    reasons = Table("left out", "records")
    for reason, count in report.left_out.most_common():
        reasons.add_row(reason, f"{count:,}")
    console.print(reasons)
    for line in report.bad[:5]:
        console.print(line, markup=False)


if __name__ == "__main__":
    run_tool(main)
