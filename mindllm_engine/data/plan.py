"""Mixture plans: which source, and which sample of it, is global sample g. Addresses are arithmetic; nothing is built.

A plan is a list of blocks, each a token budget with a weight for each source and an order (MindLLM section 4.5.1):
`shuffled` draws uniformly over the block's whole mixture; `blocked` goes source category after category, the
languages of a category interleaved. The order depends on the plan and the seed alone: not on ranks, micro-batches or
the global batch, so the state of a reader is the number of the next sample.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.data.permutation import derive_key, permute
from mindllm_engine.errors import ConfigError, DataError


@dataclass
class BlockConfig:
    """One stretch of a plan."""

    tokens: int | None = None
    """Token budget; empty for as many as the run's steps need (last block only)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of the budget for each source, up to a common factor; empty for the sources' own sizes in tokens."""
    order: Literal["shuffled", "blocked"] = "shuffled"
    """`shuffled`, or `blocked` by category with the languages interleaved."""
    max_epochs: float = 4.0
    """Cap on how often any source may be repeated up to the end of this block."""


@dataclass(frozen=True)
class SourceFacts:
    """What a plan needs to know of a source: its name, category, and size in tokens."""

    name: str
    category: str
    tokens: int


@dataclass(frozen=True)
class Block:
    """A block with its budget shared out.

    Attributes:
        first_sample: number of its first global sample.
        quotas: samples of each source, in the order of the plan's sources.
        first_of_source: for each source, how many of its samples earlier blocks have taken.
        order: `shuffled` or `blocked`.
        key: names the permutation of a shuffled block.
    """

    first_sample: int
    quotas: tuple[int, ...]
    first_of_source: tuple[int, ...]
    order: str
    key: int

    @property
    def samples(self) -> int:
        return sum(self.quotas)


class Plan:
    """The blocks of a run over its sources.

    Args:
        sources: the sources, in the order that gives them their ids.
        blocks: the configured blocks, one at least.
        seq_len: tokens a sample advances in its source (a sample holds one more, the last target).
        seed: names all permutations of the run.
        samples_needed: what the run will consume; sizes a last block without a budget of its own.

    Raises:
        ConfigError: unknown sources, impossible weights, a budget too small, a source repeated beyond its cap.
        DataError: a source shorter than one sample.
    """

    def __init__(
        self, sources: list[SourceFacts], blocks: list[BlockConfig], seq_len: int, seed: int, samples_needed: int
    ) -> None:
        self.sources = sources
        self.seq_len = seq_len
        self.seed = seed
        for source in sources:
            if source.tokens < seq_len + 1:
                raise DataError(
                    f"source {source.name}: {source.tokens} tokens are fewer than one sample of seq_len + 1 = "
                    f"{seq_len + 1}; leave it out or shorten data.seq_len"
                )
        self.blocks: list[Block] = []
        taken = np.zeros(len(sources), np.int64)
        for number, config in enumerate(blocks):
            where = f"data.blocks[{number}]"
            samples = self._budget(config, where, number == len(blocks) - 1, samples_needed - int(taken.sum()))
            quotas = share_out(samples, self._weights(config, where))
            key = derive_key(seed, number)
            self.blocks.append(
                Block(int(taken.sum()), tuple(quotas.tolist()), tuple(taken.tolist()), config.order, key)
            )
            taken += quotas
            self._check_repetition(config, where, taken)
        if self.samples < samples_needed:
            raise ConfigError(
                f"data.blocks: the plan holds {self.samples:,} samples of {seq_len} tokens but train.steps needs "
                f"{samples_needed:,}; raise a block's tokens or append a block"
            )

    @property
    def samples(self) -> int:
        """Samples in the whole plan."""
        return sum(block.samples for block in self.blocks)

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source id and sample number within that source of each global sample; arrays of the same shape, (n,)
        int64."""
        source_ids = np.empty(samples.shape, np.int64)
        indices = np.empty(samples.shape, np.int64)
        for block in self.blocks:
            inside = (samples >= block.first_sample) & (samples < block.first_sample + block.samples)
            if inside.any():
                source_ids[inside], indices[inside] = self._locate_in_block(block, samples[inside] - block.first_sample)
        return source_ids, indices

    def state(self) -> dict[str, Any]:
        """Everything that decides the order of samples, for a checkpoint (see `changed_past`)."""
        return {
            "seed": self.seed,
            "seq_len": self.seq_len,
            "sources": [asdict(source) for source in self.sources],
            "blocks": [asdict(block) | {"key": str(block.key)} for block in self.blocks],
        }

    def changed_past(self, saved: dict[str, Any], next_sample: int) -> str | None:
        """What differs between this plan and a saved one in the samples before `next_sample`; None if nothing does.

        Blocks that had not begun may have been edited, and blocks may have been appended.
        """
        now = self.state()
        for key in ("seed", "seq_len"):
            if now[key] != saved[key]:
                return f"{key} was {saved[key]} and is {now[key]}"
        if now["sources"] != saved["sources"]:
            for old, new in zip(saved["sources"], now["sources"], strict=False):
                if old != new:
                    return f"source {old['name']} was {old} and is {new}"
            return f"there were {len(saved['sources'])} sources and there are {len(now['sources'])}"
        for number, old in enumerate(saved["blocks"]):
            if old["first_sample"] >= next_sample:
                break
            new = now["blocks"][number] if number < len(now["blocks"]) else None
            if new is None or any(list_of(new[key]) != list_of(old[key]) for key in old):
                samples_now = sum(new["quotas"]) if new else 0
                return (
                    f"block {number} of {sum(old['quotas']):,} samples ({old['order']}) has been consumed in part and "
                    f"is now another ({samples_now:,} samples)"
                )
        return None

    def _budget(self, config: BlockConfig, where: str, is_last: bool, samples_left: int) -> int:
        if config.tokens is None:
            if not is_last:
                raise ConfigError(f"{where}.tokens: only the last block may be without a budget")
            return max(0, samples_left)
        if not self.seq_len <= config.tokens < 1 << 62:
            raise ConfigError(
                f"{where}.tokens: {config.tokens} is less than one sample of {self.seq_len} tokens, or beyond counting"
            )
        return config.tokens // self.seq_len

    def _weights(self, config: BlockConfig, where: str) -> NDArray[np.float64]:
        if not config.weights:
            return np.array([source.tokens for source in self.sources], np.float64)
        names = [source.name for source in self.sources]
        for name, weight in config.weights.items():
            if name not in names:
                raise ConfigError(f"{where}.weights: unknown source {name}; the sources are {', '.join(names)}")
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"{where}.weights.{name}: {weight} must be a finite number of at least 0")
        weights = np.array([config.weights.get(name, 0.0) for name in names], np.float64)
        if not weights.sum() > 0:
            raise ConfigError(f"{where}.weights: the weights sum to 0; give one source at least a weight above 0")
        return weights

    def _check_repetition(self, config: BlockConfig, where: str, taken: NDArray[np.int64]) -> None:
        for source, samples in zip(self.sources, taken.tolist(), strict=True):
            epochs = samples * self.seq_len / source.tokens
            if not epochs <= config.max_epochs:
                raise ConfigError(
                    f"{where}: source {source.name} would be repeated {epochs:.2f} times, above max_epochs = "
                    f"{config.max_epochs}; lower its weight, shorten the run, or raise the cap"
                )

    def _locate_in_block(
        self, block: Block, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = np.array(block.first_of_source, np.int64)
        quotas = np.array(block.quotas, np.int64)
        if block.order == "shuffled":
            ranks = permute(positions, block.samples, block.key)
            ends = np.cumsum(quotas)
            source_ids = np.searchsorted(ends, ranks, side="right")
            return source_ids, ranks - (ends - quotas)[source_ids] + first[source_ids]
        source_ids, counts = self._locate_blocked(quotas, positions)
        return source_ids, counts + first[source_ids]

    def _locate_blocked(
        self, quotas: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        categories = list(dict.fromkeys(source.category for source in self.sources))
        source_ids = np.empty(positions.shape, np.int64)
        counts = np.empty(positions.shape, np.int64)
        start = 0
        for category in categories:
            members = np.array([i for i, source in enumerate(self.sources) if source.category == category], np.int64)
            size = int(quotas[members].sum())
            inside = (positions >= start) & (positions < start + size)
            which, counts[inside] = interleave(positions[inside] - start, quotas[members])
            source_ids[inside] = members[which]
            start += size
        return source_ids, counts


def list_of(value: Any) -> Any:
    """Tuples as lists, so that what has been through JSON compares equal."""
    return list(value) if isinstance(value, tuple) else value


def share_out(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """`total` in whole parts as near as possible to `weights`, summing to it exactly (largest remainders)."""
    exact = total * (weights / weights.sum())
    parts = np.floor(exact).astype(np.int64)
    missing = total - int(parts.sum())
    parts[np.argsort(parts - exact, kind="stable")[:missing]] += 1
    return parts


def interleave(positions: NDArray[np.int64], quotas: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spread sources evenly over the positions [0, sum(quotas)): which source each is, and its count within the source.

    Source by source, position j of the Q still open is the first source's iff floor((j+1) q / Q) exceeds
    floor(j q / Q); the others close ranks.
    """
    which = np.full(positions.shape, -1, np.int64)
    counts = np.zeros(positions.shape, np.int64)
    open_positions, total = positions.copy(), int(quotas.sum())
    for source, quota in enumerate(quotas.tolist()):
        if quota == 0:
            continue
        before = open_positions * quota // total
        taken = ((open_positions + 1) * quota // total > before) & (which < 0)
        which[taken], counts[taken] = source, before[taken]
        open_positions -= before
        total -= quota
        if total == 0:
            break
    return which, counts
