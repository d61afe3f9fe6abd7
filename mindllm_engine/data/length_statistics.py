"""How long the documents of a source are: counts, quantiles, a histogram. One pass over its index, in memory that does
not grow with the documents."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import mindllm_engine._native as _native
from mindllm_engine.data.file_errors import reading
from mindllm_engine.data.remote import Source

# Documents whose lengths are read at a time.
GROUP = 1 << 17

# Lengths are counted in buckets: the numbers of 64-bit floating point, cut to so many bits of their fraction. Each
# length below 2^(FRACTION_BITS + 1) = 32,768 is a bucket to itself; longer ones share it with those that differ by less
# than 1 in 16,384.
FRACTION_BITS = 14
_SHIFT = 52 - FRACTION_BITS
_BUCKET_OF_1 = 1023 << FRACTION_BITS


@dataclass(frozen=True)
class HistogramBin:
    """The documents of `shortest` to `longest` tokens: 0, 1, 2 to 3, 4 to 7, ..."""

    shortest: int
    longest: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class LengthStatistics:
    """The lengths of a source's documents, in tokens.

    Attributes:
        documents, tokens: all there are.
        empty: documents without tokens; they count in the mean and the quantiles.
        mean: 0 without documents.
        median, p90, p99: the least length that half (nine tenths, ...) of the documents do not exceed. Exact below
            32,768, and from there on too small by less than 1 in 16,384.
        longest: exact.
        longer: seq_len -> documents of more than seq_len + 1 tokens, which no sample of that length holds whole.
        packed: seq_len -> tokens that best-fit packing puts into samples of that length: those in which two pieces of
            a long document overlap count twice.
        histogram: in powers of two, up to the longest document.
    """

    documents: int
    tokens: int
    empty: int
    mean: float
    median: int
    p90: int
    p99: int
    longest: int
    longer: dict[int, int]
    packed: dict[int, int]
    histogram: list[HistogramBin]


def measure_lengths(file: Source, seq_lens: Collection[int]) -> LengthStatistics:
    """Read the index of a source, and relate its documents to samples of these lengths.

    Raises:
        DataError: the index is damaged, or cannot be read.
    """
    counter = LengthCounter(seq_lens)
    with reading(file.index_path):
        index = _native.DocumentIndex(file.index_path, file.reader, GROUP)
        for group in range(index.groups):
            counter.add(index.lengths(group))
    return counter.statistics()


class LengthCounter:
    """Counts lengths as they come."""

    def __init__(self, seq_lens: Collection[int]) -> None:
        self._empty = 0
        self._longest = 0
        self._buckets = np.zeros(0, np.int64)  # documents by bucket, from that of length 1 on
        self._tokens_by_power = np.zeros(64, np.int64)
        self._longer = dict.fromkeys(seq_lens, 0)
        self._packed = dict.fromkeys(seq_lens, 0)

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Lengths of documents, int64[n], 0 or more, which sum to less than 2^53."""
        filled = lengths[lengths > 0]
        self._empty += len(lengths) - len(filled)
        if not len(filled):
            return
        self._longest = max(self._longest, int(filled.max()))
        buckets = (filled.astype(np.float64).view(np.int64) >> _SHIFT) - _BUCKET_OF_1
        counts = np.bincount(buckets)
        if len(counts) > len(self._buckets):
            self._buckets = np.concatenate([self._buckets, np.zeros(len(counts) - len(self._buckets), np.int64)])
        self._buckets[: len(counts)] += counts
        powers = buckets >> FRACTION_BITS
        self._tokens_by_power += np.bincount(powers, weights=filled, minlength=64).astype(np.int64)
        for seq_len in self._longer:
            self._longer[seq_len] += int(np.count_nonzero(filled > seq_len + 1))
            # A document's predictions are shared out; each piece has the token before its first one as well.
            pieces = np.maximum(1, -(-(filled - 1) // seq_len))
            self._packed[seq_len] += int((filled - 1 + pieces).sum())

    def statistics(self) -> LengthStatistics:
        """What has been counted so far."""
        documents = self._empty + int(self._buckets.sum())
        tokens = int(self._tokens_by_power.sum())
        until = np.cumsum(self._buckets) + self._empty
        return LengthStatistics(
            documents=documents,
            tokens=tokens,
            empty=self._empty,
            mean=tokens / max(1, documents),
            median=self._quantile(until, 50),
            p90=self._quantile(until, 90),
            p99=self._quantile(until, 99),
            longest=self._longest,
            longer=dict(self._longer),
            packed=dict(self._packed),
            histogram=self._histogram(),
        )

    def _quantile(self, until: NDArray[np.int64], percent: int) -> int:
        """The least length of the bucket up to which so many of the documents lie; `until` counts them, with the empty
        ones."""
        wanted = -(-percent * int(until[-1]) // 100) if len(until) else 0
        if wanted <= self._empty:
            return 0
        bucket = int(np.searchsorted(until, wanted))
        return int(np.array([(bucket + _BUCKET_OF_1) << _SHIFT]).view(np.float64)[0])

    def _histogram(self) -> list[HistogramBin]:
        bins = [HistogramBin(0, 0, self._empty, 0)] if self._empty else []
        for power in range(self._longest.bit_length()):
            documents = int(self._buckets[power << FRACTION_BITS : (power + 1) << FRACTION_BITS].sum())
            bins.append(HistogramBin(1 << power, (2 << power) - 1, documents, int(self._tokens_by_power[power])))
        return bins
