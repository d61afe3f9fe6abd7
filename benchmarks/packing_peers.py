"""Best-fit packing of many documents beside plain Python and TRL: the rows that token_streams.py prints.

All sides pack the same lengths by the same rule, and must need the same number of bins, before a time counts. They are
interleaved in one thread of one process; what a side needs made beforehand (a list, a table) is made outside its time.
TRL packs tables, so it gets tokens that take no memory: what is timed is the packing, and the indices it moves.
"""

import time
from bisect import bisect_left, insort
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from mindllm_engine.data.packing import pack_best_fit

PYTHON_BAR, TRL_BAR = 20.0, 2.0
MEAN_TOKENS, SIGMA = 500, 1.2  # of the log-normal lengths, before they are cut to the capacity

Lengths = npt.NDArray[np.int64]


def packing_rows(documents: int = 2_000_000, capacity: int = 2049, repetitions: int = 3) -> list[dict[str, Any]]:
    """The two rows: ours beside plain Python, and beside TRL, called in the faster of two ways. In seconds."""
    lengths = document_lengths(documents, capacity)
    as_list = lengths.tolist()
    name = f"best-fit packing of {documents:,} documents into {capacity} tokens"
    ours: dict[str, Callable[[], int]] = {"ours": lambda: pack_best_fit(lengths, capacity).bins}
    beside_python = {**ours, "plain Python": lambda: len(python_best_fit(as_list, capacity))}
    seconds = time_interleaved(beside_python, repetitions)
    rows = [row(name, seconds["ours"], seconds["plain Python"], "plain Python", PYTHON_BAR, None)]
    try:
        trl = trl_best_fit(lengths, capacity)
    except ImportError as error:
        reason = f"TRL does not import ({error}); install the extra `bench`"
        return [*rows, row(name, seconds["ours"], None, "TRL", TRL_BAR, reason)]
    seconds = time_interleaved({**ours, **trl}, repetitions=1)  # two of TRL's calls take a minute
    strongest = min(trl, key=seconds.__getitem__)
    return [*rows, row(name, seconds["ours"], seconds[strongest], strongest, TRL_BAR, None)]


def document_lengths(documents: int, capacity: int, seed: int = 0) -> Lengths:
    """Lengths like those of web text, cut to `capacity`, as TRL's bfd does: log-normal. int64[documents]."""
    lengths = np.random.default_rng(seed).lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, documents)
    return lengths.astype(np.int64).clip(1, capacity)


def python_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The documents of each bin: best-fit decreasing, for lengths of 1 to `capacity`.

    As quick as plain Python makes it: a search among the different rooms that open bins have, at most `capacity`, and
    a stack of bins for each.
    """
    bins: list[list[int]] = []
    rooms: list[int] = []  # ascending; those whose stack holds a bin
    stacks: list[list[list[int]]] = [[] for _ in range(capacity)]
    for document in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[document]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            packed = [document]
            bins.append(packed)
            left = capacity - length
        else:
            room = rooms[place]
            stack = stacks[room]
            packed = stack.pop()
            packed.append(document)
            if not stack:
                del rooms[place]
            left = room - length
        if left:
            stack = stacks[left]
            if not stack:
                insort(rooms, left)
            stack.append(packed)
    return bins


def trl_best_fit(lengths: Lengths, capacity: int) -> dict[str, Callable[[], int]]:
    """Ways to have TRL pack, by name; each call returns its number of bins. Raises ImportError where TRL is absent.

    The inner function on the whole table packs as we do. `pack_dataset` at its defaults packs each 1000 rows alone and
    so needs more bins; as what its users run, it may still be the faster.
    """
    import pyarrow as pa
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import _pack_bfd, pack_dataset

    disable_progress_bars()
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), type=pa.int32())
    table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, pa.nulls(int(lengths.sum())))})
    dataset = Dataset(table)
    return {
        "TRL _pack_bfd": lambda: len(_pack_bfd(table, capacity)),
        "TRL pack_dataset, 1000 rows at a time": lambda: len(pack_dataset(dataset, capacity, strategy="bfd")),
    }


def time_interleaved(variants: dict[str, Callable[[], int]], repetitions: int) -> dict[str, float]:
    """Median seconds a call of each; ValueError if one that packs all documents at once needs other bins than ours."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        expected = None
        for name, call in variants.items():
            start = time.perf_counter()
            bins = call()
            seconds[name].append(time.perf_counter() - start)
            expected = bins if expected is None else expected
            if bins < expected or (bins > expected and "at a time" not in name):
                raise ValueError(f"{name} needs {bins} bins, ours {expected}: not the same packing")
    return {name: median(values) for name, values in seconds.items()}


def row(name: str, ours: float, peer: float | None, peer_name: str, bar: float, reason: str | None) -> dict[str, Any]:
    """A row of the benchmark's JSON; times in seconds, ratio above 1 where ours is faster."""
    ratio = None if peer is None else peer / ours
    return {
        "name": name,
        "unit": "s",
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": ratio,
        "bar": bar,
        "holds": None if ratio is None else ratio >= bar,
        "reason": reason,
    }
