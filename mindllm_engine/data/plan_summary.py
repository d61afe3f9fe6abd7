"""A plan in numbers, for people: what each block takes of each source, how often, and the totals by language and
category."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from mindllm_engine.data.mixture import Block
from mindllm_engine.data.plan import Plan
from mindllm_engine.data.shares import BlockConfig, SourceFacts, exceeds, left_out, source_shares


@dataclass
class SourceSummary:
    """A source in a block.

    Attributes:
        available: tokens of the source.
        share_asked, share: of the block's tokens, from 0 to 1: by the ratios, and in whole samples.
        samples, tokens: what the block takes.
        epochs: how often the block reads the source; epochs_so_far: with the blocks before it.
        cap: on `epochs_so_far`.
        unused: why the block takes nothing of it; None if it does.
        exceeds: whether the plan is refused for this source.
    """

    name: str
    language: str
    category: str
    available: int
    share_asked: float
    share: float
    samples: int
    tokens: int
    epochs: float
    epochs_so_far: float
    cap: float
    unused: str | None
    exceeds: bool


@dataclass
class BlockSummary:
    """A block; `languages` and `categories` hold the tokens it takes of each."""

    samples: int
    tokens: int
    seq_len: int
    order: str
    sources: list[SourceSummary]
    languages: dict[str, int]
    categories: dict[str, int]


@dataclass
class PlanSummary:
    """A whole plan, and its totals."""

    hash: str
    seed: int
    packing: str
    samples: int
    tokens: int
    blocks: list[BlockSummary]
    languages: dict[str, int]
    categories: dict[str, int]


def summarize(plan: Plan, configs: list[BlockConfig]) -> PlanSummary:
    """The numbers of a plan and of the blocks it was made from."""
    blocks: list[BlockSummary] = []
    epochs = [Fraction(0)] * len(plan.sources)
    for block, config in zip(plan.blocks, configs, strict=True):
        epochs = [before + plan.epochs_in(block, number) for number, before in enumerate(epochs)]
        blocks.append(_summarize_block(plan, block, config, epochs))
    rows = [row for block in blocks for row in block.sources]
    return PlanSummary(
        hash=plan.hash,
        seed=plan.seed,
        packing=plan.packing,
        samples=plan.samples,
        tokens=plan.tokens_in(0, plan.samples),
        blocks=blocks,
        languages=_totals((row.language, row.tokens) for row in rows),
        categories=_totals((row.category, row.tokens) for row in rows),
    )


def _summarize_block(plan: Plan, block: Block, config: BlockConfig, epochs: list[Fraction]) -> BlockSummary:
    shares = source_shares(config, plan.sources)

    def row(number: int, source: SourceFacts) -> SourceSummary:
        cap = config.max_epochs_of.get(source.name, config.max_epochs)
        return SourceSummary(
            name=source.name,
            language=source.language,
            category=source.category,
            available=source.tokens,
            share_asked=float(shares.get(source.name, 0)),
            share=block.quotas[number] / max(1, block.samples),
            samples=block.quotas[number],
            tokens=block.quotas[number] * block.seq_len,
            epochs=float(plan.epochs_in(block, number)),
            epochs_so_far=float(epochs[number]),
            cap=cap,
            unused=left_out(config, source),
            exceeds=block.quotas[number] > 0 and exceeds(epochs[number], cap),
        )

    rows = [row(number, source) for number, source in enumerate(plan.sources)]
    return BlockSummary(
        samples=block.samples,
        tokens=block.samples * block.seq_len,
        seq_len=block.seq_len,
        order=block.order,
        sources=rows,
        languages=_totals((row.language, row.tokens) for row in rows),
        categories=_totals((row.category, row.tokens) for row in rows),
    )


def _totals(amounts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sums by label, the largest first, without those of 0."""
    totals: Counter[str] = Counter()
    for label, amount in amounts:
        totals[label] += amount
    return {label: amount for label, amount in totals.most_common() if amount}
