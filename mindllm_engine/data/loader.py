"""Micro-batches of packed samples. The whole state of a loader is its plan and the number of the next sample.

The native module finds and reads the samples (csrc/batch_reader.hpp). This file asks for them some micro-batches ahead
of need, gives them memory that the GPU can copy from, and makes one line of what goes wrong.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import mindllm_engine._native as _native
from mindllm_engine.data.file_errors import reading
from mindllm_engine.data.loss_mask import learnt_targets
from mindllm_engine.data.packing import pack_best_fit
from mindllm_engine.data.plan import Plan
from mindllm_engine.data.prepared_reads import PreparedReads, how_to_prepare
from mindllm_engine.data.remote import Source
from mindllm_engine.data.stream import open_samples
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.kernels.attention import remember_offsets

# The target of a position whose next token belongs to another document; losses leave it out.
IGNORED = -100

# Micro-batches that are being read before the one that is asked for, and the threads that read them.
READ_AHEAD = 4
READ_THREADS = 2


@dataclass(frozen=True)
class Batch:
    """One micro-batch: samples packed one after the other, T tokens in all. A sample that whole documents do not fill
    (best-fit packing) ends in padding, which is a document to itself and all of whose targets are `IGNORED`.

    Attributes:
        tokens: (T,) int64.
        targets: (T,) int64, the token after each, or `IGNORED` where the next document begins, or a mask says that it
            is not learnt.
        positions: (T,) int64, place of each token in its document within the sample, from 0.
        cu_seqlens: (documents + 1,) int32, where each piece of a document begins, and T at the end.
        source_ids: (T,) int64, the source each token comes from.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    source_ids: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; copies from pinned memory do not block."""
        if device.type == "cpu":
            return self
        parts = (self.tokens, self.targets, self.positions, self.cu_seqlens, self.source_ids)
        moved = Batch(*(part.to(device, non_blocking=True) for part in parts))
        remember_offsets(moved.cu_seqlens, self.cu_seqlens.tolist())
        return moved


class PendingBatch:
    """A micro-batch whose arrays are being filled.

    Attributes:
        samples: the global samples in it, (n,) int64.
        wait: fills the arrays, or waits until threads have; returns how many numbers of `cu_seqlens` are set.
    """

    def __init__(self, samples: NDArray[np.int64], tokens: int, pinned: bool) -> None:
        self.samples = samples
        self.wait: Callable[[], int]
        self._rows = torch.empty((4, tokens), dtype=torch.int64, pin_memory=pinned)
        self._cu_seqlens = torch.empty(tokens + 1, dtype=torch.int32, pin_memory=pinned)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """tokens, targets, positions, source_ids: (T,) int64 each; cu_seqlens: (T + 1,) int32, more than it needs."""
        return (*self._rows.numpy(), self._cu_seqlens.numpy())

    def batch(self) -> Batch:
        """The batch, once it is filled."""
        borders = self.wait()
        tokens, targets, positions, source_ids = self._rows
        return Batch(tokens, targets, positions, self._cu_seqlens[:borders], source_ids)


class Loader:
    """Reads the samples of a plan for one rank.

    Global sample g of step s, s * global_batch <= g < (s + 1) * global_batch, goes to the ranks in runs of
    `micro_batch` samples, so that which samples make up a step does not depend on the number of ranks.

    Args:
        files: the sources in the order of the plan's.
        vocab_size: every id read must be below it.
        verify: check each chunk of local data against its manifest's checksum before the first of its tokens is used.
            Chunks of remote data are always checked, when they arrive.

    Raises:
        DataError: an index is damaged.
    """

    def __init__(
        self, plan: Plan, files: Sequence[Source], vocab_size: int, rank: int, world_size: int, verify: bool = False
    ) -> None:
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self._sources = open_samples(plan, files)
        parts = [
            (str(file.prefix), file.reader, file.bytes, samples)
            for file, samples in zip(files, self._sources, strict=True)
        ]
        self._reader = _native.BatchReader(plan.mixture(), parts, vocab_size)
        self._ahead = _native.ReadAhead(self._reader, READ_THREADS)
        require = [how_to_prepare(file, verify) for file in files]
        self._prepared = PreparedReads(self._reader, require, READ_THREADS) if any(require) else None
        self._pinned = torch.cuda.is_available()  # asked once: it takes microseconds
        self._pending: deque[PendingBatch] = deque()
        self._masks = [file.mask for file in files]
        self._masked = any(mask is not None for mask in self._masks)

    def addressing_bytes(self) -> int:
        """Memory held to find samples."""
        return sum(source.addressing_bytes for source in self._sources if source is not None)

    def micro_batches(self, first_sample: int, global_batch: int, micro_batch: int) -> Iterator[Batch]:
        """This rank's micro-batches of the step that consumes samples [first_sample, first_sample + global_batch).

        While one is used, those that follow are read, of the next steps too.

        Raises:
            DataError: a file is damaged, cut short or lost, or holds an id outside the vocabulary.
        """
        ours = range(self.rank * micro_batch, global_batch, self.world_size * micro_batch)
        for number in range(len(ours)):
            following = (step + start for step in itertools.count(first_sample, global_batch) for start in ours)
            self._read_ahead(list(itertools.islice(following, number, number + 1 + READ_AHEAD)), micro_batch)
            yield self._finish(self._pending.popleft())

    def read(self, samples: NDArray[np.int64]) -> Batch:
        """The global samples of these numbers, (n,) int64, as one batch, at once. Raises DataError as
        `micro_batches`."""
        batch = PendingBatch(samples, self._reader.count_tokens(samples), self._pinned)
        arrays = batch.arrays()
        if self._prepared is None:  # without a thread, which would only have to be waited for
            batch.wait = lambda: self._reader.read(samples, *arrays)
        else:
            batch.wait = self._prepared.submit(samples, arrays).result
        return self._finish(batch)

    def find(self, sample: int) -> tuple[int, NDArray[np.int64]]:
        """Where a global sample comes from: its source's id, and int64[stretches, 4]: document, place in the document,
        place in the file, tokens. Raises DataError for a damaged index."""
        with reading(Path("a token file")):
            source, stretches = self._reader.find(sample)
        return source, stretches

    def _read_ahead(self, firsts: list[int], micro_batch: int) -> None:
        """Make the pending micro-batches those that start at `firsts`; what else was expected is dropped."""
        last = max(self.plan.samples - micro_batch, firsts[0])
        wanted = [np.arange(first, first + micro_batch) for first in firsts if first <= last]
        while any(not np.array_equal(a.samples, b) for a, b in zip(self._pending, wanted, strict=False)):
            self._pending.pop()
        for samples in wanted[len(self._pending) :]:
            self._pending.append(self._begin(samples))

    def _begin(self, samples: NDArray[np.int64]) -> PendingBatch:
        batch = PendingBatch(samples, self._reader.count_tokens(samples), self._pinned)
        if self._prepared is None:
            batch.wait = self._ahead.submit(samples, *batch.arrays()).wait
        else:
            batch.wait = self._prepared.submit(samples, batch.arrays()).result
        return batch

    def _finish(self, batch: PendingBatch) -> Batch:
        with reading(Path("a token file")):
            filled = batch.batch()
        return self._apply_masks(filled, batch.samples) if self._masked else filled

    def _apply_masks(self, batch: Batch, samples: NDArray[np.int64]) -> Batch:
        """The batch without the targets that the masks of its samples' sources leave out, its targets in place."""
        targets = batch.targets.numpy()
        borders = []
        first = 0
        for sample in samples.tolist():
            seq_len = self.plan.tokens_in(sample, 1)
            source, stretches = self.find(sample)
            mask = self._masks[source]
            if mask is not None:
                learnt, inner = learnt_targets(mask, stretches, seq_len)
                targets[first : first + seq_len][~learnt] = IGNORED
                borders.append(first + inner[inner < seq_len])
            first += seq_len
        if not any(map(len, borders)):
            return batch
        cu_seqlens = np.union1d(batch.cu_seqlens.numpy(), np.concatenate(borders))
        return replace(
            batch,
            positions=torch.from_numpy(_positions(cu_seqlens)),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        )


def pack(samples: list[tuple[NDArray[np.int64], NDArray[np.int64]]], source_ids: NDArray[np.int64]) -> Batch:
    """Samples of (tokens (seq_len + 1,), where documents begin in it but at 0), packed into one batch."""
    lengths = np.array([len(sample) - 1 for sample, _ in samples])
    tokens = np.concatenate([sample[:-1] for sample, _ in samples])
    targets = np.concatenate([sample[1:] for sample, _ in samples])
    starts = []
    for first, seq_len, (_, borders) in zip(np.cumsum(lengths) - lengths, lengths, samples, strict=True):
        targets[first + borders - 1] = IGNORED
        starts.append(first + np.concatenate(([0], borders[borders < seq_len])))
    cu_seqlens = np.concatenate([*starts, [len(tokens)]])
    return Batch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(_positions(cu_seqlens)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        source_ids=torch.from_numpy(np.repeat(source_ids, lengths)),
    )


def heldout_rows(tokens: int, seq_len: int, max_tokens: int) -> NDArray[np.int64]:
    """Which rows of `seq_len` targets of a held-out file are read, by number: all, or as many as `max_tokens` has room
    for (one at least), evenly spaced. The first ones alone would be a document or two where documents are long."""
    rows = max(1, -(-(tokens - 1) // seq_len))
    read = rows if max_tokens >= tokens else min(rows, max(1, max_tokens // seq_len))
    return np.arange(read, dtype=np.int64) * rows // read


def heldout_tokens(file: TokenFile, seq_len: int, max_tokens: int) -> int:
    """How many of a held-out file's tokens `heldout_batches` reads; of a file with a mask, at most so many."""
    if file.mask is not None or max_tokens >= file.tokens:
        return min(file.tokens, max_tokens)
    begins = heldout_rows(file.tokens, seq_len, max_tokens) * seq_len
    return int(np.minimum(seq_len, file.tokens - begins).sum())


def heldout_batches(file: TokenFile, source_id: int, seq_len: int, micro_batch: int, max_tokens: int) -> list[Batch]:
    """A held-out file in rows of `seq_len`, each token a target exactly once (but the first of a document).

    A document that crosses a cut goes on without its earlier tokens as context. Rows of padding fill the last
    micro-batch; their targets are `IGNORED`. Of a file of more than `max_tokens` tokens the rows are a sample
    (`heldout_rows`). A file with a mask is read in whole documents, packed into rows.
    """
    if file.mask is not None:
        return _masked_batches(file, file.mask, source_id, seq_len, micro_batch, max_tokens)
    rows = heldout_rows(file.tokens, seq_len, max_tokens)
    lengths = file.lengths
    document_starts = np.cumsum(lengths[lengths > 0])
    batches = []
    for first in range(0, len(rows), micro_batch):
        samples = [(np.zeros(seq_len + 1, np.int64), np.empty(0, np.int64))] * micro_batch
        beyond = np.ones((micro_batch, seq_len), np.bool_)
        for place, row in enumerate(rows[first : first + micro_batch].tolist()):
            begin = row * seq_len
            count = min(seq_len + 1, file.tokens - begin)
            tokens = np.zeros(seq_len + 1, np.int64)
            file.gather(np.array([begin], np.int64), np.array([count], np.int64), tokens[:count])
            inner = document_starts[(document_starts > begin) & (document_starts < begin + count)] - begin
            samples[place] = (tokens, inner)
            beyond[place, : count - 1] = False
        batch = pack(samples, np.full(micro_batch, source_id, np.int64))
        batch.targets[torch.from_numpy(beyond.reshape(-1))] = IGNORED
        batches.append(batch)
    return batches


def _masked_batches(
    file: TokenFile, mask: NDArray[np.uint8], source_id: int, seq_len: int, micro_batch: int, max_tokens: int
) -> list[Batch]:
    """`heldout_batches` of a file with a mask: its first documents of `max_tokens` tokens, one at least, each with all
    that comes before it in its document (but for documents longer than a row), every learnt token a target once."""
    lengths = file.lengths
    starts = np.cumsum(lengths) - lengths
    documents = max(1, int(np.searchsorted(np.cumsum(lengths), max_tokens, side="right")))
    packing = pack_best_fit(lengths[:documents], seq_len + 1)
    places = np.stack(
        [packing.documents, packing.starts, starts[packing.documents] + packing.starts, packing.counts], 1
    )
    rows = [places[begin:end] for begin, end in itertools.pairwise(packing.bin_starts.tolist())]
    rows += [places[:0]] * (-len(rows) % micro_batch)
    batches = []
    for first in range(0, len(rows), micro_batch):
        samples, learnt = [], []
        for stretches in rows[first : first + micro_batch]:
            tokens, filled = np.zeros(seq_len + 1, np.int64), int(stretches[:, 3].sum())
            counted, inner = np.zeros(seq_len, np.bool_), np.empty(0, np.int64)
            if filled:
                file.gather(stretches[:, 2].copy(), stretches[:, 3].copy(), tokens[:filled])
                counted, inner = learnt_targets(mask, stretches, seq_len)
            ends = np.cumsum(stretches[:, 3])
            samples.append((tokens, np.union1d(ends[ends <= seq_len], inner).astype(np.int64)))
            learnt.append(counted)
        batch = pack(samples, np.full(micro_batch, source_id, np.int64))
        batch.targets[torch.from_numpy(~np.concatenate(learnt))] = IGNORED
        batches.append(batch)
    return batches


def _positions(cu_seqlens: NDArray[np.integer]) -> NDArray[np.int64]:
    """The place of each token in its sequence, (T,)."""
    return np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens))
