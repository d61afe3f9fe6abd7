"""What a block of a plan asks for, and the share of each source that follows from it, exactly.

A share is the ratio of the source's language, times the ratio of its category within that language, times its weight
(or its tokens) within the two; a level that the block does not name falls away. Shares are fractions, so that quotas
add up whatever the sizes.
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import xxhash

from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.mixture import Order
from mindllm_engine.errors import ConfigError

MAX_TOKENS = 1 << 62
"""Positions in tokens are 64-bit numbers, with room for one addition."""


@dataclass
class BlockConfig:
    """One stretch of a plan."""

    tokens: int | None = None
    """Token budget; empty for as many as the run's steps need (last block only)."""
    seq_len: int | None = None
    """Tokens in a sample of this block; empty for data.seq_len."""
    languages: dict[str, float] = field(default_factory=dict)
    """Ratio of the languages, such as {zh: 1, en: 1.5}; languages not named are left out. Empty: no such rule."""
    categories: dict[str, float] = field(default_factory=dict)
    """Ratio of the categories within each language (within all, where `languages` is empty); categories not named are
    left out. `blocked` takes them in this order, or by name where this is empty."""
    weights: dict[str, float] = field(default_factory=dict)
    """Ratio of the sources within their language and category; sources not named are left out. Empty: their tokens."""
    order: Order = "shuffled"
    """`shuffled` over the whole mixture; `blocked` by category, the languages interleaved; or `chunked`: shuffled runs
    of successive samples of one source."""
    samples_per_chunk: int = 4
    """Samples in a run of `chunked`."""
    max_epochs: float = 4.0
    """How often any source of this block may have been read by its end, from the start of the plan."""
    max_epochs_of: dict[str, float] = field(default_factory=dict)
    """The same for single sources."""


@dataclass(frozen=True)
class SourceFacts:
    """What a plan needs to know of a source.

    Attributes:
        name: as plans and metrics call it.
        language, category: of its manifest.
        tokens, documents: its size.
        content: hash of the manifest's checksums: other data under the same name shows.
        epoch_samples: seq_len -> samples in an epoch (best-fit packing only).
    """

    name: str
    language: str
    category: str
    tokens: int
    documents: int
    content: str
    epoch_samples: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, manifest: Manifest, epoch_samples: dict[int, int] | None = None) -> "SourceFacts":
        """The facts that a manifest holds."""
        checksums = [manifest.index_checksum, *manifest.chunks, *filter(None, [manifest.mask])]
        content = xxhash.xxh3_64_hexdigest("\n".join(checksums).encode())
        return cls(
            name, manifest.lang, manifest.category, manifest.tokens, manifest.documents, content, epoch_samples or {}
        )


def check_blocks(blocks: list[BlockConfig], sources: list[SourceFacts], seq_len: int) -> None:
    """Whatever can be found wrong without the sizes of the sources.

    Raises:
        ConfigError: an unknown name (with the nearest), an impossible number, ratios that contradict each other.
    """
    if not blocks:
        raise ConfigError("data.blocks: a plan needs one block at least")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"data.sources: two sources are called {name}; rename one")
    for number, block in enumerate(blocks):
        where = f"data.blocks[{number}]"
        _check_sizes(block, where, seq_len, is_last=number == len(blocks) - 1)
        for key, ratios, kind, known in (
            ("languages", block.languages, "language", {source.language for source in sources}),
            ("categories", block.categories, "category", {source.category for source in sources}),
            ("weights", block.weights, "source", names),
            ("max_epochs_of", block.max_epochs_of, "source", names),
        ):
            _check_names(f"{where}.{key}", ratios, kind, known)
            if ratios and key != "max_epochs_of" and not any(ratios.values()):
                raise ConfigError(f"{where}.{key}: the ratios sum to 0; give one at least a number above 0")
        _check_ratios(block, where, sources)


def left_out(block: BlockConfig, source: SourceFacts) -> str | None:
    """Why a block draws nothing from a source; None if it draws from it."""
    for key, ratios, kind, label in (
        ("languages", block.languages, "language ", source.language),
        ("categories", block.categories, "category ", source.category),
        ("weights", block.weights, "", source.name),
    ):
        if ratios and not ratios.get(label):
            return f"{kind}{label} has no share in {key}"
    return None


def exceeds(epochs: Fraction, cap: float) -> bool:
    """Whether a source is read more often than its cap, taken as the decimal number that was written: no float is
    0.96."""
    return epochs > (Fraction(str(cap)) if math.isfinite(cap) else cap)


def source_shares(block: BlockConfig, sources: list[SourceFacts]) -> dict[str, Fraction]:
    """The share of each source that a block draws from, by name; they sum to 1. The block has passed `check_blocks`,
    and its sources have tokens."""
    drawn = [source for source in sources if left_out(block, source) is None]
    weights = block.weights or {source.name: source.tokens for source in drawn}
    levels = (("language", block.languages), ("category", block.categories), ("name", weights))
    return _divide(Fraction(1), drawn, [(attribute, ratios) for attribute, ratios in levels if ratios])


def _divide(
    share: Fraction, sources: list[SourceFacts], levels: Sequence[tuple[str, Mapping[str, float]]]
) -> dict[str, Fraction]:
    """A share divided among sources: by the ratios of the first level, and each part by the levels below it."""
    if not levels:
        return {source.name: share for source in sources}
    (attribute, ratios), *below = levels
    groups: dict[str, list[SourceFacts]] = {}
    for source in sources:
        groups.setdefault(getattr(source, attribute), []).append(source)
    total = sum((Fraction(ratios[label]) for label in groups), Fraction(0))
    shares: dict[str, Fraction] = {}
    for label, members in groups.items():
        shares |= _divide(share * Fraction(ratios[label]) / total, members, below)
    return shares


def share_out(total: int, shares: dict[str, Fraction]) -> dict[str, int]:
    """`total` in whole parts by `shares`, which sum to 1: largest remainders, the earlier name first where they tie."""
    exact = {name: total * shares[name] for name in sorted(shares)}
    parts = {name: math.floor(value) for name, value in exact.items()}
    missing = total - sum(parts.values())
    for name in sorted(exact, key=lambda name: parts[name] - exact[name])[:missing]:
        parts[name] += 1
    return parts


def _check_sizes(block: BlockConfig, where: str, seq_len: int, is_last: bool) -> None:
    if block.seq_len is not None and block.seq_len < 1:
        raise ConfigError(f"{where}.seq_len: {block.seq_len} must be at least 1")
    if block.tokens is None and not is_last:
        raise ConfigError(f"{where}.tokens: only the last block may be without a budget")
    sample = block.seq_len or seq_len
    if block.tokens is not None and not sample <= block.tokens < MAX_TOKENS:
        raise ConfigError(
            f"{where}.tokens: {block.tokens} is less than one sample of {sample} tokens, or beyond counting"
        )
    if not 1 <= block.samples_per_chunk < MAX_TOKENS:
        raise ConfigError(f"{where}.samples_per_chunk: {block.samples_per_chunk} must be at least 1, and countable")
    if not block.max_epochs >= 0:
        raise ConfigError(f"{where}.max_epochs: {block.max_epochs} must be a number of at least 0")


def _check_names(where: str, ratios: dict[str, float], kind: str, known: Collection[str]) -> None:
    for name, ratio in ratios.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            these = {"language": "languages", "category": "categories", "source": "sources"}[kind]
            advice = f"did you mean {nearest[0]}?" if nearest else f"the {these} are {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown {kind} {name}; {advice}")
        # A cap may be infinite, which is none; a share may not.
        if not 0 <= ratio < math.inf and not (ratio == math.inf and where.endswith(".max_epochs_of")):
            raise ConfigError(f"{where}.{name}: {ratio} must be a finite number of at least 0")


def _check_ratios(block: BlockConfig, where: str, sources: list[SourceFacts]) -> None:
    """Each name with a ratio above 0 must have something to draw from, or its share would go elsewhere in silence."""
    by_name = {source.name: source for source in sources}
    for name, weight in block.weights.items():
        reason = left_out(block, by_name[name])
        if weight and reason:
            raise ConfigError(f"{where}.weights.{name}: {weight}, but its {reason}; add it there or remove the weight")
    drawn = [source for source in sources if left_out(block, source) is None]
    for key, ratios, present in (
        ("languages", block.languages, {source.language for source in drawn}),
        ("categories", block.categories, {source.category for source in drawn}),
    ):
        for name, ratio in ratios.items():
            if ratio and name not in present:
                raise ConfigError(
                    f"{where}.{key}.{name}: {ratio}, but every source of it is left out by the block's other ratios; "
                    f"give one a share or remove {name}"
                )
