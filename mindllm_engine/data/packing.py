"""Best-fit packing: documents into bins of a fixed number of tokens, those that fit never split (csrc/packing.hpp).

For a whole collection at once. Samples of `data.packing: best_fit` are the same packing of one window of documents
after the other, made where they are read (csrc/sample_source.hpp).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import mindllm_engine._native as _native
from mindllm_engine.errors import DataError


@dataclass(frozen=True, eq=False)
class Packing:
    """Which tokens of which documents lie in which bin.

    A *piece* is tokens [start, start + count) of a document. Bin b holds pieces [bin_starts[b], bin_starts[b + 1]).
    """

    capacity: int
    """The tokens that a bin has room for."""
    documents: npt.NDArray[np.int64]
    """int64[pieces]: the document of each piece; increasing within a bin."""
    starts: npt.NDArray[np.int64]
    """int64[pieces]: its first token in the document, 0 but for pieces of a document longer than a bin."""
    counts: npt.NDArray[np.int64]
    """int64[pieces]: its tokens, 1 to `capacity`."""
    bin_starts: npt.NDArray[np.int64]
    """int64[bins + 1]: where each bin's pieces begin, and the number of pieces."""

    @property
    def bins(self) -> int:
        """The number of bins."""
        return len(self.bin_starts) - 1

    @property
    def tokens(self) -> int:
        """The tokens of all pieces: those in which two pieces of a document overlap count twice."""
        return int(self.counts.sum())

    @property
    def efficiency(self) -> float:
        """The share of the bins' room that holds tokens, 0 to 1; 1 without bins."""
        return self.tokens / (self.bins * self.capacity) if self.bins else 1.0


def pack_best_fit(lengths: npt.NDArray[np.integer] | Sequence[int], capacity: int) -> Packing:
    """Pack documents into bins of `capacity` tokens, best fit decreasing.

    lengths: integers[documents], in tokens. The longest document comes first, equal ones in their order, each into the
    bin with the least room that still holds it, among equals the one filled last, or else into a new bin.

    A document of at most `capacity` tokens is one piece. One without tokens is in no bin. A longer one is cut into
    pieces of `capacity` tokens, each beginning with the last token of the one before, so that every prediction of a
    next token falls into exactly one piece; a last piece of one token would predict nothing and is not made. Pieces of
    `capacity` tokens are the first bins, in document order.

    To train on samples of `seq_len` predictions, `capacity` is `seq_len + 1`. Takes about 35 ns a document, and memory
    for documents + capacity + pieces. Raises DataError for a negative length, a capacity outside [2, 2^24], 2^31
    documents or more, or a number of pieces that no memory holds.
    """
    try:
        arrays = _native.pack_best_fit(np.asarray(lengths, dtype=None if len(lengths) else np.int64), capacity)
    except (ValueError, MemoryError) as error:
        raise DataError(f"best-fit packing: {error}") from error
    return Packing(capacity, *arrays)
