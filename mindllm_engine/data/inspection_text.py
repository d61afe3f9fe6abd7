"""Prints what data/inspection.py finds: a table of the sources, a histogram of lengths, and samples as text with the
borders of documents."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mindllm_engine.data.inspection import Decode, Inspection, SourceView
from mindllm_engine.data.length_statistics import HistogramBin
from mindllm_engine.data.plan import Plan
from mindllm_engine.data.sample_view import Piece, SampleView

# A longer text, or list of ids, is cut in the middle: what is left of its beginning and of its end.
HEAD, TAIL = 400, 200
IDS_HEAD, IDS_TAIL = 32, 16
_BAR_WIDTH = 30


def print_inspection(console: Console, inspection: Inspection, decode: Decode | None) -> None:
    """All of it but the course of the plan. Without `decode` samples are shown as ids."""
    print_sources(console, inspection.plan, inspection.sources)
    print_histogram(console, inspection.sources)
    for view in inspection.samples:
        print_sample(console, view, inspection.plan, decode)


def print_sources(console: Console, plan: Plan, sources: Sequence[SourceView]) -> None:
    """A row for each source."""
    seq_lens = sorted({block.seq_len for block in plan.blocks})
    packed = seq_lens if plan.packing == "best_fit" else []
    longest = max(source.lengths.longest for source in sources)
    table = Table(title="sources, lengths in tokens", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("source", "lang", "category"):
        table.add_column(title, overflow="fold")
    titles = ["documents", "tokens", "empty", "mean", "median", "p90", "p99", "longest"]
    titles += [f"> {seq_len + 1}" for seq_len in seq_lens] + ["tokens/byte", "epochs"]
    for title in titles + [f"packed {seq_len}" for seq_len in packed]:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(f"0 .. {longest:,}", no_wrap=True)
    for source in sources:
        row = source.lengths
        cells = [f"{row.documents:,}", f"{row.tokens:,}", f"{row.empty:,}", f"{row.mean:,.1f}"]
        cells += [f"{length:,}" for length in (row.median, row.p90, row.p99, row.longest)]
        cells += [f"{row.longer[seq_len] / max(1, row.documents):.2%}" for seq_len in seq_lens]
        cells += [f"{source.tokens_per_byte:.3f}", f"{source.epochs:.3f}"]
        cells += [f"{source.efficiency[seq_len]:.2%}" if seq_len in source.efficiency else "" for seq_len in packed]
        named = map(Text, (source.name, source.language, source.category))  # Text: a name may look like markup
        table.add_row(*named, *cells, sparkline(row.histogram, longest))
    console.print(table)


def sparkline(histogram: Sequence[HistogramBin], longest: int) -> str:
    """A histogram in one line, a character for empty documents and for each power of two up to `longest`."""
    heights = [0] * (longest.bit_length() + 1)
    for one in histogram:
        heights[one.shortest.bit_length()] = one.documents
    top = max(1, *heights)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-height * 8 // top)] for height in heights)


def print_histogram(console: Console, sources: Sequence[SourceView]) -> None:
    """The lengths of all sources together, with bars."""
    totals: dict[tuple[int, int], list[int]] = {}
    for one in (one for source in sources for one in source.lengths.histogram if one.documents):
        total = totals.setdefault((one.shortest, one.longest), [0, 0])
        total[0] += one.documents
        total[1] += one.tokens
    documents, tokens = (max(1, sum(total[i] for total in totals.values())) for i in (0, 1))
    most_documents, most_tokens = (max([1, *(total[i] for total in totals.values())]) for i in (0, 1))
    table = Table(title="lengths of all sources", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("tokens", "documents", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH)
    table.add_column("of tokens", justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH)
    for (shortest, longest), (count, tokens_of_these) in sorted(totals.items()):
        table.add_row(
            f"{shortest:,}" if shortest == longest else f"{shortest:,} - {longest:,}",
            f"{count:,}",
            f"{count / documents:.2%}",
            Bar(most_documents, 0, count),
            f"{tokens_of_these / tokens:.2%}",
            Bar(most_tokens, 0, tokens_of_these),
        )
    console.print(table)


def print_sample(console: Console, view: SampleView, plan: Plan, decode: Decode | None) -> None:
    """A sample with a line above each document's part in it."""
    facts, order = plan.sources[view.source], plan.blocks[view.block].order
    title = (
        f"sample {view.sample:,}: {facts.name} ({facts.language}, {facts.category}), {view.seq_len:,} tokens, "
        f"block {view.block} ({order})"
    )
    console.rule(Text(title, style="bold"), align="left", characters="═")
    for piece in view.pieces:
        console.rule(Text(border(piece), style="cyan"), align="left")
        text = shown_ids(piece.ids) if decode is None else shown_text(decode(piece.ids))
        console.print(Text(text), soft_wrap=True)
    if view.padding:
        console.rule(Text(f"padding: {view.padding:,} tokens", style="cyan"), align="left")
    count = sum(last - first + 1 for first, last in view.ignored)
    places = ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in view.ignored)
    ignored = f"ignored: {count:,} of {view.seq_len:,} targets" + (f", at {places}" if places else "")
    console.print(Text(ignored), soft_wrap=True)
    console.print()


def border(piece: Piece) -> str:
    """What stands on the line above a piece."""
    parts = [f"document {piece.document:,}", f"tokens [{piece.begin:,}, {piece.end:,}) of {piece.length:,}"]
    parts += [f"{piece.targets:,} targets"]
    parts += ["begins before"] * piece.begins_before + ["continues"] * piece.continues
    return ", ".join(parts)


def shown_text(text: str) -> str:
    """A text with its white space visible, no character that would command the terminal, and its middle left out."""
    left_out = len(text) - HEAD - TAIL
    if left_out > 0:
        return f"{visible(text[:HEAD])} … {left_out:,} characters … {visible(text[-TAIL:])}"
    return visible(text)


def visible(text: str) -> str:
    """Marks for line breaks, tabs, and spaces at the ends of lines or several in a row."""
    text = re.sub(r"  +|^ | $", lambda spaces: "·" * len(spaces[0]), text, flags=re.MULTILINE)
    text = text.replace("\t", "⇥\t").replace("\n", "↵\n")
    return "".join(letter if letter.isprintable() or letter in "\t\n" else repr(letter)[1:-1] for letter in text)


def shown_ids(ids: NDArray[np.int64]) -> str:
    """Token ids, the middle left out."""
    left_out = len(ids) - IDS_HEAD - IDS_TAIL
    if left_out > 0:
        head, tail = (" ".join(map(str, part)) for part in (ids[:IDS_HEAD], ids[-IDS_TAIL:]))
        return f"{head} … {left_out:,} ids … {tail}"
    return " ".join(map(str, ids))
