"""Mixture plans: which source, and which sample of it, is global sample g. Addresses are arithmetic; nothing is built.

A plan is a list of blocks, each a token budget with ratios of languages, categories and sources (data/shares.py) and an
order (data/mixture.py). The order of samples depends on the plan, the contents of its sources and the seed alone: not
on ranks, micro-batches, the global batch, or the order in which sources are named. So the state of a reader is the hash
of the plan and the number of the next sample (data/plan_state.py).
"""

import math
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

import mindllm_engine._native as _native
from mindllm_engine.data.mixture import Block
from mindllm_engine.data.permutation import derive_key
from mindllm_engine.data.plan_state import first_change, plan_state, state_hash
from mindllm_engine.data.shares import (
    MAX_TOKENS,
    BlockConfig,
    SourceFacts,
    check_blocks,
    exceeds,
    left_out,
    share_out,
    source_shares,
)
from mindllm_engine.errors import ConfigError, DataError

Packing = Literal["contiguous", "best_fit"]

__all__ = ["Block", "BlockConfig", "Packing", "Plan", "SourceFacts"]


class Plan:
    """The blocks of a run over its sources.

    With contiguous packing a source is an endless stream of epochs, and a block's share of it goes on at the token
    where the last block stopped, whatever the lengths of their samples. With best-fit packing an epoch is a number of
    samples, which differs by seq_len: a block goes on where the last block of its own seq_len stopped, so that another
    seq_len begins a new pass over the source. The epochs of all passes add up for the cap on repetition.

    Args:
        sources: the sources, in the order that gives them their ids.
        blocks: the configured blocks, one at least.
        seq_len: of blocks without one of their own: tokens a sample advances in its source (it holds one more, the
            last target).
        seed: names all permutations of the run.
        samples_needed: what the run will consume; sizes a last block without a budget of its own.
        packing: `contiguous` or `best_fit`.

    Attributes:
        blocks: list of `Block`.
        source_keys: for each source, the key of its permutations, from the seed and its name.

    Raises:
        ConfigError: unknown names, impossible ratios, a budget too small, a source repeated beyond its cap.
        DataError: a source shorter than one sample.
    """

    def __init__(
        self,
        sources: list[SourceFacts],
        blocks: list[BlockConfig],
        seq_len: int,
        seed: int,
        samples_needed: int,
        packing: Packing = "contiguous",
    ) -> None:
        check_blocks(blocks, sources, seq_len)
        self.sources = sources
        self.seq_len = seq_len
        self.seed = seed
        self.packing = packing
        self.source_keys = tuple(derive_key(seed, xxhash.xxh3_64_intdigest(source.name.encode())) for source in sources)
        self.blocks: list[Block] = []
        # Where the next block's share of each source begins, by seq_len where samples are numbered by it.
        nexts: dict[int, list[int]] = {}
        epochs = [Fraction(0)] * len(sources)
        tokens = 0
        for number, config in enumerate(blocks):
            where = f"data.blocks[{number}]"
            firsts = nexts.setdefault(self._seq_len(config) if packing == "best_fit" else 0, [0] * len(sources))
            block = self._lay_out(config, number, samples_needed, firsts)
            self.blocks.append(block)
            tokens += block.samples * block.seq_len
            if tokens >= MAX_TOKENS:
                raise ConfigError(f"{where}.tokens: the plan is beyond counting; shorten it")
            for source, quota in enumerate(block.quotas):
                firsts[source] += quota * (block.seq_len if packing == "contiguous" else 1)
                epochs[source] += self.epochs_in(block, source)
            refuse_repetition(config, where, block, sources, epochs)
        if self.samples < samples_needed:
            raise ConfigError(
                f"data.blocks: the plan holds {self.samples:,} samples but train.steps needs {samples_needed:,}; raise "
                "a block's tokens or append a block"
            )

    @property
    def samples(self) -> int:
        """Samples in the whole plan."""
        return self.blocks[-1].first_sample + self.blocks[-1].samples if self.blocks else 0

    @property
    def hash(self) -> str:
        """Equal for plans that give the same samples in the same order; 16 hexadecimal digits."""
        return state_hash(self.state())

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source id of each global sample, and where it begins there: a token position in the endless stream
        (contiguous) or a sample number (best fit). Arrays of the same shape, (n,) int64.

        Raises IndexError for samples outside the plan.
        """
        source_ids, starts, _ = self.mixture().locate(samples)
        return source_ids, starts

    def mixture(self) -> Any:
        """The `_native.Mixture` of these blocks, which locates samples on the training path."""
        return _native.Mixture(
            [block.native() for block in self.blocks], len(self.sources), self.packing == "contiguous"
        )

    def tokens_in(self, first_sample: int, count: int) -> int:
        """Tokens that `count` samples from `first_sample` on advance: blocks may differ in seq_len."""
        ends = ((block, min(first_sample + count, block.first_sample + block.samples)) for block in self.blocks)
        return sum(block.seq_len * max(0, end - max(first_sample, block.first_sample)) for block, end in ends)

    def epochs_in(self, block: Block, source: int) -> Fraction:
        """How often a block reads a source."""
        if block.quotas[source] == 0:
            return Fraction(0)
        facts = self.sources[source]
        if self.packing == "contiguous":
            return Fraction(block.quotas[source] * block.seq_len, facts.tokens)
        return Fraction(block.quotas[source], facts.epoch_samples[block.seq_len])

    def state(self) -> dict[str, Any]:
        """Everything that decides the order of samples, for a checkpoint (see `changed_past`)."""
        return plan_state(self.seed, self.packing, self.sources, self.blocks)

    def changed_past(self, saved: dict[str, Any], next_sample: int) -> str | None:
        """What differs between this plan and a saved state in blocks that have begun before `next_sample`, in one
        line; None if nothing does. Blocks that had not begun may have been edited, removed or appended."""
        return first_change(saved, self.state(), next_sample)

    def _seq_len(self, config: BlockConfig) -> int:
        return config.seq_len or self.seq_len

    def _lay_out(self, config: BlockConfig, number: int, samples_needed: int, firsts: list[int]) -> Block:
        seq_len, first_sample = self._seq_len(config), self.samples
        for source in self.sources:
            if left_out(config, source) is None:
                refuse_short(source, seq_len, self.packing)
        samples = max(0, samples_needed - first_sample) if config.tokens is None else config.tokens // seq_len
        quotas = share_out(samples, source_shares(config, self.sources))
        return Block(
            first_sample=first_sample,
            seq_len=seq_len,
            order=config.order,
            samples_per_chunk=config.samples_per_chunk,
            key=derive_key(self.seed, number),
            quotas=tuple(quotas.get(source.name, 0) for source in self.sources),
            firsts=tuple(firsts),
            categories=self._categories(config, quotas),
        )

    def _categories(self, config: BlockConfig, quotas: dict[str, int]) -> tuple[tuple[int, ...], ...]:
        """See `Block.categories`."""
        used = [number for number, source in enumerate(self.sources) if quotas.get(source.name)]
        used.sort(key=lambda number: self.sources[number].name)
        if config.order != "blocked":
            return (tuple(used),) if used else ()
        used.sort(key=lambda number: -quotas[self.sources[number].name])
        present = {self.sources[number].category for number in used}
        names = [name for name in config.categories or sorted(present) if name in present]
        return tuple(tuple(number for number in used if self.sources[number].category == name) for name in names)


def refuse_short(source: SourceFacts, seq_len: int, packing: Packing) -> None:
    """Raise DataError for a source that does not hold one sample."""
    if packing == "contiguous" and source.tokens < seq_len + 1:
        raise DataError(
            f"source {source.name}: {source.tokens} tokens are fewer than one sample of seq_len + 1 = {seq_len + 1}; "
            "leave it out or shorten seq_len"
        )
    if packing == "best_fit" and not source.epoch_samples.get(seq_len):
        raise DataError(
            f"source {source.name}: its {source.tokens} tokens pack into no sample of seq_len {seq_len}; leave it out "
            "or shorten seq_len"
        )


def refuse_repetition(
    config: BlockConfig, where: str, block: Block, sources: list[SourceFacts], epochs: list[Fraction]
) -> None:
    """Raise ConfigError for the first source of a block whose `epochs` up to the block's end are above its cap."""
    for number, source in enumerate(sources):
        cap = config.max_epochs_of.get(source.name, config.max_epochs)
        if block.quotas[number] and exceeds(epochs[number], cap):
            key = f"max_epochs_of.{source.name}" if source.name in config.max_epochs_of else "max_epochs"
            raise ConfigError(
                f"{where}: source {source.name} would be repeated {math.ceil(epochs[number] * 100) / 100:.2f} times, "
                f"above {key} = {cap}; lower its share, shorten the block, bring more of its text, or raise the cap"
            )
