"""Make tuning data of finance texts: `python tools/prepare_finance.py --config configs/tuning/finance.yaml`."""

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.tuning.finance import FinanceConfig, FinanceReport, prepare_finance


def main() -> None:
    """Label, split, balance, write, and say what came of the records."""
    description = "Make tuning data of finance news labelled by prices, or of comments with labels."
    config = parse_arguments(FinanceConfig, description)
    columns = (TextColumn("{task.completed:,} records read"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("records", total=None)
        report = prepare_finance(config, lambda records: progress.update(task, completed=records))
    print_tables(report)
    written = sum(sum(classes.values()) for classes in report.kept.values())
    print(f"{config.out}: {written:,} of {report.records:,} records")


def print_tables(report: FinanceReport) -> None:
    """Classes before and after in each part, reasons, and the price file."""
    console = Console()
    for part, found in report.found.items():
        classes = Table("class", "records", "kept", title=part)
        for name, count in found.items():
            classes.add_row(name, f"{count:,}", f"{report.kept[part][name]:,}")
        console.print(classes)
    for title, counts in (("left out", dict(report.left_out.most_common())), ("prices", report.prices)):
        table = Table(title, "records")
        for reason, count in counts.items():
            table.add_row(reason, f"{count:,}")
        if counts:
            console.print(table)
    for line in report.bad[:5]:
        console.print(line, markup=False)


if __name__ == "__main__":
    run_tool(main)
