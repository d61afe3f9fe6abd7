"""How long things take: device time without launch gaps, wall time, the machine's ceilings, memory.

Device time is taken with events around a batch of calls that is enqueued while the device is held busy, so that no gap
between launches is timed; whether the whole batch was enqueued in time is checked and told. A variant's calls rotate
over inputs of more than three L2 caches, and what they return is kept for one rotation, so that outputs rotate too.
Variants are interleaved (A B C A B C), so that a change of clocks hits all of them.

Without a GPU everything runs once under a host clock: that tests the harness and says nothing about speed.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]

# A batch is at least so long, has at most so many calls, and all batches of a variant take about so long.
BATCH_SECONDS, BATCH_CALLS, VARIANT_SECONDS = 2e-3, 64, 0.12
REPETITIONS = (5, 25)
WALL_CALLS = 7
# An upper bound of the device's clock, to turn seconds into cycles to hold it busy.
CLOCK_HZ = 2.0e9
LONGEST_HOLD = 0.1
# Inputs rotate over this many L2 caches.
CACHES = 3
COPY_ELEMENTS = 1 << 29
GEMM_SIZE = 8192


@dataclass(frozen=True)
class Spread:
    """Seconds a call: median, 20th and 80th percentile. `host_bound`: the device waited for launches within a batch."""

    median: float
    low: float
    high: float
    host_bound: bool = False

    def minus(self, other: "Spread") -> "Spread":
        """This less the median of `other`, for what can only be timed together with something else."""
        values = (max(value - other.median, 0.0) for value in (self.median, self.low, self.high))
        return Spread(*values, host_bound=self.host_bound or other.host_bound)


def spread_of(seconds: Sequence[float], host_bound: bool = False) -> Spread:
    low, median, high = np.percentile(np.asarray(seconds), (20, 50, 80))
    return Spread(float(median), float(low), float(high), host_bound)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def empty_cache(device: torch.device) -> None:
    """Give a GPU's memory back that nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def still_works(device: torch.device) -> bool:
    """Whether this process can use its GPU: after an illegal access, say, every call fails."""
    try:
        synchronize(device)
        empty_cache(device)
    except RuntimeError:
        return False
    return True


def rotation(set_bytes: int, device: torch.device) -> int:
    """How many sets of inputs of `set_bytes` calls should rotate over."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(16, math.ceil(CACHES * cache / max(set_bytes, 1))))


def measure(variants: dict[str, Sequence[Call]], device: torch.device) -> dict[str, Spread]:
    """Seconds a call of each variant, interleaved. The calls of a variant differ in their inputs alone."""
    if device.type != "cuda":
        return {name: spread_of([wall_seconds(calls[0], device)]) for name, calls in variants.items()}
    batches = {name: Batch(calls) for name, calls in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    slowest = max((batch.seconds for batch in batches.values()), default=0.0)
    repetitions = int(np.clip(VARIANT_SECONDS / max(slowest, 1e-6), *REPETITIONS))
    for _ in range(repetitions):
        for name, batch in batches.items():
            seconds[name].append(batch.run())
    return {name: spread_of(seconds[name], batch.host_bound) for name, batch in batches.items()}


class Batch:
    """Calls of one variant on the current GPU, timed together.

    Attributes:
        seconds: about what a batch takes.
        host_bound: whether the last batch could not be enqueued before it began to run.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.kept: list[Any] = [None] * len(calls)
        self.next = 0
        self.hold = self.enqueue_seconds = 0.0
        self.size = max(2, len(calls))
        self.host_bound = False
        self._time_queued()  # compiles, and fills the allocator's cache
        once = self._time_queued()
        calls = self.size
        self.size = int(np.clip(math.ceil(BATCH_SECONDS / max(once, 1e-7)), 1, BATCH_CALLS))
        self.hold = min(LONGEST_HOLD, 2 * self.enqueue_seconds * self.size / calls + 1e-4)
        self.seconds = once * self.size

    def run(self) -> float:
        """Seconds a call of one more batch; held longer if the host was too slow."""
        seconds = self._time_queued()
        while self.host_bound and self.hold < LONGEST_HOLD:
            self.hold = min(LONGEST_HOLD, 4 * self.hold)
            seconds = self._time_queued()
        return seconds

    def _time_queued(self) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int(self.hold * CLOCK_HZ))
        start.record()
        began = time.perf_counter()
        for _ in range(self.size):
            self.kept[self.next] = self.calls[self.next]()
            self.next = (self.next + 1) % len(self.calls)
        self.enqueue_seconds = time.perf_counter() - began
        self.host_bound = start.query()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.size


def wall_seconds(call: Call, device: torch.device) -> float:
    """Seconds on the host's clock from an idle device through one call to an idle device: median of a few."""
    seconds = []
    for _ in range(WALL_CALLS if device.type == "cuda" else 1):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def extra_memory(call: Call, device: torch.device) -> int | None:
    """Bytes at the peak of a call beyond what was held before it and what it returns; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    returned = call()
    synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    kept = sum({x.data_ptr(): x.numel() * x.element_size() for x in tensors_in(returned)}.values())
    return max(0, peak - before - kept)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors of nested tuples and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for part in value for x in tensors_in(part)] if isinstance(value, (tuple, list)) else []


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy on the device, read and written bytes both counted."""
    elements = COPY_ELEMENTS if device.type == "cuda" else 1 << 20
    source = torch.randn(elements, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    seconds = measure({"copy": [lambda: target.copy_(source)]}, device)["copy"].median
    return 2 * source.numel() * source.element_size() / seconds


def gemm_flops(device: torch.device) -> float:
    """FLOP/s of a large square bf16 product on random data."""
    size = GEMM_SIZE if device.type == "cuda" else 128
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / measure({"gemm": [lambda: torch.mm(a, b, out=out)]}, device)["gemm"].median
