"""Which source, and which sample of a block's share of it, stands at a position of the block: arithmetic, no arrays.

The readable form of what csrc/mixture.cpp does on the training path, and the oracle of its tests. A plan
(data/plan.py) lays out the blocks; the three orders are those of MindLLM's section 4.5.1.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import mindllm_engine._native as _native
from mindllm_engine.data.permutation import permute

Order = Literal["shuffled", "blocked", "chunked"]


@dataclass(frozen=True)
class Block:
    """A stretch of a plan with its budget shared out.

    Attributes:
        first_sample: number of its first global sample.
        seq_len: tokens a sample advances; it holds one more, the last target.
        order: how the positions are laid out, see `locate_in_block`.
        samples_per_chunk: length of a run of the order `chunked`, in samples.
        key: names the permutations of this block.
        quotas: samples of each source, in the order of the plan's sources.
        firsts: where this block's share of each source begins: a token position in the endless stream of its epochs
            (contiguous packing), or a sample number (best fit).
        categories: ids of the sources with a quota, in the order in which they are laid out: `blocked`: a tuple for
            each category, by falling quota, then by name; otherwise one tuple, by name.
    """

    first_sample: int
    seq_len: int
    order: Order
    samples_per_chunk: int
    key: int
    quotas: tuple[int, ...]
    firsts: tuple[int, ...]
    categories: tuple[tuple[int, ...], ...]

    @property
    def samples(self) -> int:
        """Samples in the block."""
        return sum(self.quotas)

    def native(self) -> Any:
        """The same as a `_native.BlockSpec`."""
        return _native.BlockSpec(**vars(self) | {"order": getattr(_native.Order, self.order)})


def locate_in_block(block: Block, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Source id and index within the block's share of that source, in [0, quota), of each position.

    shuffled: a keyed permutation of all positions gives ranks, which cumulative quotas divide among the sources.
    chunked: runs of `samples_per_chunk` successive samples of one source, the runs permuted; then the samples that
        fill no run, permuted.
    blocked: category after category, the sources of each interleaved, and the samples of each source permuted.

    Args:
        positions: (n,) int64 in [0, block.samples).

    Returns:
        source_ids, indices: both (n,) int64.
    """
    members = np.array([source for category in block.categories for source in category], np.int64)
    quotas = np.array(block.quotas, np.int64)[members]
    if block.order == "shuffled":
        which, indices = _divide(permute(positions, block.samples, block.key), quotas)
    elif block.order == "chunked":
        which, indices = _locate_chunked(positions, quotas, block.samples_per_chunk, block.key)
    else:
        which, indices = _locate_blocked(positions, quotas, [len(category) for category in block.categories], block.key)
    return members[which], indices


def interleave(positions: NDArray[np.int64], quotas: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spread sources evenly over the positions [0, sum(quotas)): which source each is, and its count within the source.

    Of the first j of Q positions, the first source has round(j q / Q); the others share what it leaves in the same
    way. By falling quota, any prefix holds each source's share to within 1/2 sample for two sources and 1 for three;
    with more, the roundings add up to at most (1 + H(n - 1)) / 2, H the harmonic numbers.

    Args:
        positions: (n,) int64.
        quotas: (sources,) int64, the larger ones first.
    """
    which = np.full(positions.shape, -1, np.int64)
    counts = np.zeros(positions.shape, np.int64)
    # Python integers: a product of two quotas outgrows 64 bits.
    left, left_after, total = positions.astype(object), positions.astype(object) + 1, int(quotas.sum())
    for source, quota in enumerate(quotas.tolist()):
        before, after = ((place * quota + total // 2) // max(total, 1) for place in (left, left_after))
        taken = (after > before) & (which < 0)
        which[taken], counts[taken] = source, before[taken]
        left, left_after, total = left - before, left_after - after, total - quota
    return which, counts


def _divide(ranks: NDArray[np.int64], quotas: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which quota each rank falls in, the quotas laid one after the other, and its place there."""
    ends = np.cumsum(quotas)
    which = np.searchsorted(ends, ranks, side="right")
    return which, ranks - (ends - quotas)[which]


def _locate_chunked(
    positions: NDArray[np.int64], quotas: NDArray[np.int64], chunk: int, key: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    which, indices = np.empty_like(positions), np.empty_like(positions)
    runs, rest = quotas // chunk, quotas % chunk
    in_runs = positions < runs.sum() * chunk
    run, within = np.divmod(positions[in_runs], chunk)
    which[in_runs], place = _divide(permute(run, int(runs.sum()), key), runs)
    indices[in_runs] = place * chunk + within
    beyond = positions[~in_runs] - runs.sum() * chunk
    which[~in_runs], place = _divide(permute(beyond, int(rest.sum()), key), rest)
    indices[~in_runs] = (runs * chunk)[which[~in_runs]] + place
    return which, indices


def _locate_blocked(
    positions: NDArray[np.int64], quotas: NDArray[np.int64], sizes: list[int], key: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    which, indices = np.empty_like(positions), np.empty_like(positions)
    start, first_member = 0, 0
    for size in sizes:
        members = quotas[first_member : first_member + size]
        end = start + int(members.sum())
        inside = np.flatnonzero((positions >= start) & (positions < end))
        member, counts = interleave(positions[inside] - start, members)
        which[inside] = first_member + member
        for number, quota in enumerate(members.tolist()):
            indices[inside[member == number]] = permute(counts[member == number], quota, key)
        start, first_member = end, first_member + size
    return which, indices
