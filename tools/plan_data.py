"""Look at a run's data plan before it starts: `python tools/plan_data.py --config configs/demo.yaml`.

Reads the config of the run (several `--config` files complete each other) and the token files, which must exist; no
text is tokenised, and no network is built.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.data.plan_summary import BlockSummary, PlanSummary, summarize
from mindllm_engine.errors import ConfigError
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.setup import make_plan, open_prepared


@dataclass
class PlanArguments(RunConfig):
    """A run's configuration, and where the numbers go besides the screen."""

    json: str | None = None
    """File to write the same numbers to."""


def main() -> None:
    """Print what each block takes of each source, and refuse a plan that repeats one too often."""
    description = "Print what the blocks of a run's data plan take of each source, and refuse an impossible plan."
    config = parse_arguments(PlanArguments, description)
    sources = open_prepared(config)
    # Without its caps first, so that a plan which exceeds them is seen whole before it is refused.
    uncapped = [replace(block, max_epochs=math.inf, max_epochs_of={}) for block in config.data.blocks]
    plan = make_plan(replace(config, data=replace(config.data, blocks=uncapped)), sources)
    summary = summarize(plan, config.data.blocks)
    if config.json is not None:
        write_json(Path(config.json), summary)
    print_summary(summary)
    make_plan(config, sources)


def write_json(path: Path, summary: PlanSummary) -> None:
    """Write the numbers. Raises ConfigError where that is impossible."""
    try:
        path.write_bytes(orjson.dumps(asdict(summary), option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise ConfigError(f"json: cannot write to {path} ({error.strerror}); choose another file") from error


def print_summary(summary: PlanSummary) -> None:
    """One table a block, and the totals."""
    # Wider than a narrow terminal, whose lines wrap then: numbers that are cut short are worth nothing.
    console = Console(width=max(120, Console().width), highlight=False)
    for number, block in enumerate(summary.blocks):
        print_block(console, number, block)
    if len(summary.blocks) > 1:
        console.print(f"all blocks: {summary.samples:,} samples, {summary.tokens:,} tokens")
        print_totals(console, summary)
    console.print(f"plan {summary.hash}, packing {summary.packing}, seed {summary.seed}")


def print_block(console: Console, number: int, block: BlockSummary) -> None:
    """The sources of a block, and its totals."""
    table = Table(
        title=f"block {number}: {block.samples:,} samples of {block.seq_len:,}, {block.tokens:,} tokens, {block.order}",
        title_justify="left",
    )
    for title in ("source", "lang", "category"):
        table.add_column(title, overflow="fold")
    for title in ("available", "asked", "taken", "share", "epochs", "so far", "cap"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in block.sources:
        named = map(Text, (row.name, row.language, row.category))  # Text: a name may look like markup
        table.add_row(
            *named, f"{row.available:,}", f"{row.share_asked:.2%}", f"{row.tokens:,}",
            f"{row.share:.2%}", f"{row.epochs:.3f}", f"{row.epochs_so_far:.3f}", f"{row.cap:g}",
            style="red" if row.exceeds else "dim" if row.unused else None,
        )  # fmt: skip
    console.print(table)
    unused: dict[str, list[str]] = {}
    for row in block.sources:
        if row.unused:
            unused.setdefault(row.unused, []).append(row.name)
        elif row.exceeds:
            console.print(f"above cap   {row.name}: {row.epochs_so_far:.3f} epochs of {row.cap:g}", markup=False)
    for reason, names in unused.items():
        console.print(f"unused      {', '.join(names)}: {reason}", markup=False)
    print_totals(console, block)


def print_totals(console: Console, total: BlockSummary | PlanSummary) -> None:
    """Languages with their ratio, and categories."""
    for title, amounts in (("languages", total.languages), ("categories", total.categories)):
        parts = ", ".join(f"{label} {amount / max(1, total.tokens):.2%}" for label, amount in amounts.items())
        console.print(f"{title:11} {parts}", markup=False)
    if len(total.languages) > 1:
        smallest_first = sorted(total.languages.items(), key=lambda item: item[1])
        names, sizes = zip(*smallest_first, strict=True)
        ratio = " : ".join(f"{size / sizes[0]:.4g}" for size in sizes)
        console.print(f"{'ratio':11} {' : '.join(names)} = {ratio}", markup=False)
    console.print()


if __name__ == "__main__":
    run_tool(main)
