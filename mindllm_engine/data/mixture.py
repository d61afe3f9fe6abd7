"""A block of a plan with its budget shared out, in one of three orders (MindLLM, section 4.5.1).

Which source, and which of the block's samples of it, stands at a position of the block is arithmetic, with no arrays
(csrc/mixture.cpp):

- `shuffled`: a keyed permutation of all positions gives ranks, which cumulative quotas divide among the sources.
- `blocked`: category after category, the sources of each interleaved evenly, and the samples of each source permuted.
- `chunked`: runs of `samples_per_chunk` successive samples of one source, the runs permuted; then the samples that fill
  no run, permuted.
"""

from dataclasses import dataclass
from typing import Any, Literal

import mindllm_engine._native as _native

Order = Literal["shuffled", "blocked", "chunked"]


@dataclass(frozen=True)
class Block:
    """A stretch of a plan with its budget shared out.

    Attributes:
        first_sample: number of its first global sample.
        seq_len: tokens a sample advances; it holds one more, the last target.
        order: how its positions are laid out, see above.
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
