"""Tokens a second, model FLOPs utilisation and memory: how much of the machine a run uses."""

import resource
import time

import torch

# Dense bf16 tensor-core peaks of the vendors' data sheets, FLOP/s, by a part of the device's name.
PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12}

CPU_PROBE_SIZE = 1024
CPU_PROBE_SECONDS = 0.1


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that this process could reach at most: a data-sheet figure for a known GPU, None for an unknown one.

    A CPU has no such sheet: there it is the rate of a square matrix product of this dtype, measured now on this
    process's threads (all ranks at once, so that they share the machine as they will in training).
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)
    a = torch.ones(CPU_PROBE_SIZE, CPU_PROBE_SIZE, dtype=dtype)
    a @ a
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < CPU_PROBE_SECONDS:
        a @ a
        products += 1
    return 2 * CPU_PROBE_SIZE**3 * products / (time.perf_counter() - start)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this process has held so far, GiB: on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stopwatch:
    """Tokens a second between two looks."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.tokens = 0

    def count(self, tokens: int) -> None:
        """Add what a step has consumed."""
        self.tokens += tokens

    def restart(self) -> float:
        """Tokens a second since the last call."""
        now = time.perf_counter()
        rate = self.tokens / (now - self.start)
        self.start, self.tokens = now, 0
        return rate
