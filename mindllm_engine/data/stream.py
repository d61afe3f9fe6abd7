"""A source as an endless stream of tokens: its documents in a keyed order of its own for each epoch, cut into
samples."""

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.data.permutation import derive_key, permute
from mindllm_engine.data.token_files import TokenFile

# Epochs whose document order is kept: a sample spans two at most when epochs are longer than a sample.
EPOCHS_KEPT = 2


class SourceStream:
    """Samples of one source by number.

    Sample k holds the stream's tokens [k * seq_len, k * seq_len + seq_len + 1). Each document occurs once in an epoch.

    Args:
        file: the source's tokens.
        seq_len: tokens from one sample to the next.
        vocab_size: every id read must be below it; a `DataError` names the document where one is not.
        key: names the order of documents; each epoch has its own, derived from it.
    """

    def __init__(self, file: TokenFile, seq_len: int, vocab_size: int, key: int) -> None:
        self.file = file
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.key = key
        self.lengths = file.lengths
        self.document_starts = np.cumsum(self.lengths) - self.lengths
        self._orders: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def read(self, sample: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of sample `sample` and where documents begin in it.

        Returns:
            tokens: (seq_len + 1,) int64.
            borders: (n,) int64, ascending positions in [1, seq_len] at which a new document begins.
        """
        starts, counts = self._pieces(sample * self.seq_len, self.seq_len + 1)
        tokens = np.empty(self.seq_len + 1, np.int64)
        self.file.gather(starts, counts, tokens)
        if not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            self.file.verify_ids(self.vocab_size)  # raises, naming the document
        return tokens, np.cumsum(counts)[:-1]

    def _pieces(self, position: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The ranges of the token file, (start, count) each a document or a part of one, that make up the stream's next
        `wanted` tokens from `position`."""
        starts: list[NDArray[np.int64]] = []
        counts: list[NDArray[np.int64]] = []
        epoch, offset = divmod(position, self.file.tokens)
        while wanted > 0:
            order, ends = self._order(epoch)
            stop = min(offset + wanted, self.file.tokens)
            first, last = np.searchsorted(ends, (offset, stop - 1), side="right")
            documents = order[first : last + 1]
            begins = self.document_starts[documents].copy()
            lengths = self.lengths[documents].copy()
            into_first = offset - (ends[first] - self.lengths[order[first]])
            begins[0] += into_first
            lengths[0] -= into_first
            lengths[-1] -= ends[last] - stop
            starts.append(begins[lengths > 0])
            counts.append(lengths[lengths > 0])
            wanted -= stop - offset
            epoch, offset = epoch + 1, 0
        return np.concatenate(starts), np.concatenate(counts)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Documents in the order of this epoch, and the end of each in the epoch's tokens; both (documents,) int64."""
        if epoch not in self._orders:
            while len(self._orders) >= EPOCHS_KEPT:
                del self._orders[min(self._orders)]
            documents = len(self.lengths)
            order = permute(np.arange(documents, dtype=np.int64), documents, derive_key(self.key, epoch))
            self._orders[epoch] = (order, np.cumsum(self.lengths[order]))
        return self._orders[epoch]

    def addressing_bytes(self) -> int:
        """Bytes of the arrays that find documents."""
        orders = sum(array.nbytes for pair in self._orders.values() for array in pair)
        return self.lengths.nbytes + self.document_starts.nbytes + orders
