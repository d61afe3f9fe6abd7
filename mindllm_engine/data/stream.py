"""The samples of each source: what the native module needs to know to find them (csrc/sample_source.hpp)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mindllm_engine._native as _native
from mindllm_engine.data.file_errors import reading
from mindllm_engine.data.plan import Plan
from mindllm_engine.data.remote import Source

# Sources whose index is read at the same time.
THREADS = 8


def open_samples(plan: Plan, files: Sequence[Source]) -> list[Any]:
    """The `_native.SampleSource` of each source of a plan, None where no block reads it. Reads each index once.

    Raises:
        DataError: an index is damaged, or cannot be read.
    """

    def open_one(number: int) -> Any:
        file, key = files[number], plan.source_keys[number]
        seq_lens = sorted({block.seq_len for block in plan.blocks if block.quotas[number]})
        if not seq_lens:
            return None
        with reading(file.index_path):
            if plan.packing == "contiguous":
                return _native.ContiguousSource(file.index_path, file.reader, key)
            return _native.BestFitSource([packed_windows(file, seq_len) for seq_len in seq_lens], key)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(open_one, range(len(files))))


def packed_windows(file: Source, seq_len: int) -> Any:
    """The `_native.PackedWindows` of a source: its documents packed best fit for samples of `seq_len`. Made once.

    Raises:
        DataError: the index is damaged, or cannot be read.
    """
    if seq_len not in file.packings:
        with reading(file.index_path):
            file.packings[seq_len] = _native.PackedWindows(file.index_path, file.reader, seq_len)
    return file.packings[seq_len]
