"""Micro-batches of packed samples. The whole state of a loader is its plan and the number of the next sample."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mindllm_engine.data.permutation import derive_key
from mindllm_engine.data.plan import Plan
from mindllm_engine.data.stream import SourceStream
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.kernels.attention import remember_offsets

# The target of a position whose next token belongs to another document; losses leave it out.
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch: `samples` rows of `seq_len` tokens, packed one after the other, T = samples * seq_len.

    Attributes:
        tokens: (T,) int64.
        targets: (T,) int64, the token after each, or `IGNORED` where the next document begins.
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
        """The batch on a device; the copy from pinned memory does not block."""
        if device.type == "cpu":
            return self
        parts = (self.tokens, self.targets, self.positions, self.cu_seqlens, self.source_ids)
        moved = Batch(*(part.pin_memory().to(device, non_blocking=True) for part in parts))
        remember_offsets(moved.cu_seqlens, self.cu_seqlens.tolist())
        return moved


def pack(samples: list[tuple[NDArray[np.int64], NDArray[np.int64]]], source_ids: NDArray[np.int64]) -> Batch:
    """Samples of (tokens (seq_len + 1,), borders) as `SourceStream.read` gives them, packed into one batch."""
    seq_len = len(samples[0][0]) - 1
    tokens = np.concatenate([sample[:-1] for sample, _ in samples])
    targets = np.concatenate([sample[1:] for sample, _ in samples])
    starts = []
    for row, (_, borders) in enumerate(samples):
        targets[row * seq_len + borders - 1] = IGNORED
        starts.append(row * seq_len + np.concatenate(([0], borders[borders < seq_len])))
    cu_seqlens = np.concatenate([*starts, [len(tokens)]])
    positions = np.arange(len(tokens)) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    return Batch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        source_ids=torch.from_numpy(np.repeat(source_ids, seq_len)),
    )


class Loader:
    """Reads the samples of a plan for one rank.

    Global sample g of step s, s * global_batch <= g < (s + 1) * global_batch, goes to the ranks in runs of
    `micro_batch` samples, so that which samples make up a step does not depend on the number of ranks.
    """

    def __init__(self, plan: Plan, files: list[TokenFile], vocab_size: int, rank: int, world_size: int) -> None:
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self.streams = [
            SourceStream(file, plan.seq_len, vocab_size, derive_key(plan.seed, -1 - number))
            for number, file in enumerate(files)
        ]

    def micro_batches(self, first_sample: int, global_batch: int, micro_batch: int) -> Iterator[Batch]:
        """This rank's micro-batches of the step that consumes samples [first_sample, first_sample + global_batch)."""
        for start in range(self.rank * micro_batch, global_batch, self.world_size * micro_batch):
            yield self.read(np.arange(first_sample + start, first_sample + start + micro_batch))

    def read(self, samples: NDArray[np.int64]) -> Batch:
        """The global samples of these numbers, (n,) int64, as one batch."""
        source_ids, indices = self.plan.locate(samples)
        parts = [self.streams[source].read(index) for source, index in zip(source_ids, indices.tolist(), strict=True)]
        return pack(parts, source_ids)

    def addressing_bytes(self) -> int:
        """Bytes held in memory to find samples by their numbers."""
        return sum(stream.addressing_bytes() for stream in self.streams)


def heldout_batches(file: TokenFile, source_id: int, seq_len: int, micro_batch: int, max_tokens: int) -> list[Batch]:
    """A held-out file from its beginning, in order, each token a target exactly once (but the first of a document).

    The file is cut into rows of `seq_len`; a document that crosses a cut goes on without its earlier tokens as context.
    Rows of padding fill the last micro-batch; their targets are `IGNORED`. At most `max_tokens` tokens are read.
    """
    total = min(file.tokens, max_tokens)
    rows = max(1, -(-(total - 1) // seq_len))
    stream = np.zeros(-(-rows // micro_batch) * micro_batch * seq_len + 1, np.int64)
    file.gather(np.array([0], np.int64), np.array([total], np.int64), stream[:total])
    lengths = file.lengths
    document_starts = np.cumsum(lengths[lengths > 0])
    batches = []
    for first in range(0, rows, micro_batch):
        samples = []
        for row in range(first, first + micro_batch):
            begin, end = row * seq_len, (row + 1) * seq_len + 1
            inner = document_starts[(document_starts > begin) & (document_starts < min(end, total))] - begin
            samples.append((stream[begin:end], inner))
        batch = pack(samples, np.full(micro_batch, source_id, np.int64))
        beyond = np.arange(first * seq_len, (first + micro_batch) * seq_len) + 1 >= total
        batch.targets[torch.from_numpy(beyond)] = IGNORED
        batches.append(batch)
    return batches
