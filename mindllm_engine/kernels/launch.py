"""Launches Triton kernels: at a few microseconds of host time a call, and on record where there is no device.

Triton's own `kernel[grid](...)` looks its arguments over anew on each call, 6 us for ten of them. A `Program` is a
kernel with its constexpr parameters, and keeps the machine code for each combination of what else Triton specialises
on (dtypes, alignment to 16, divisibility by 16): 3 us. Operators make their programs once a shape, behind `lru_cache`.

On meta tensors nothing runs. Whoever wants to know what would (the gate on machine code does) asks `recording`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mindllm_engine.kernels.backend import interpreted

INTERPRETED = interpreted()
if INTERPRETED:
    from mindllm_engine.kernels.interpreter import mend_interpreter

    mend_interpreter()

# Multiprocessors of an H100 or H200 (SXM), for grids laid out where there is no GPU.
H100_MULTIPROCESSORS = 132

Grid = tuple[int, int, int]


class Program:
    """A kernel with its launch options and constexpr parameters.

    Args:
        kernel: the `@triton.jit` function; its constexpr parameters come after all others.
        num_warps, num_stages: Triton's launch options.
        constants: the constexpr parameters by name, in the kernel's order.
    """

    def __init__(self, kernel: Any, num_warps: int = 4, num_stages: int = 1, **constants: Any) -> None:
        self.kernel = kernel
        self.num_warps = num_warps
        self.num_stages = num_stages
        self.constants = constants
        self._constant_values = tuple(constants.values())
        self._machine_code: dict[tuple[Any, ...], tuple[Any, Any, Any]] = {}

    def __call__(self, grid: Grid, *args: Any) -> None:
        """Run over `grid` with `args`: tensors, ints and floats (fp32 on the device), the first a tensor."""
        if _record is not None:
            _record.append(Launch(self.kernel, grid, args, self.constants, self.num_warps, self.num_stages))
        first = args[0]
        if first.is_meta or 0 in grid:
            return
        if INTERPRETED:
            self.kernel[grid](*args, **self.constants)
            return
        device = first.get_device()
        key = (device, *_specialisation(args))
        code = self._machine_code.get(key)
        if code is None or device != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                self._compile(key, grid, args)
            return
        run, function, metadata = code
        stream = torch._C._cuda_getCurrentRawStream(device)
        run(*grid, stream, function, metadata, None, None, None, *args, *self._constant_values)

    def _compile(self, key: tuple[Any, ...], grid: Grid, args: tuple[Any, ...]) -> None:
        """Run by Triton's own launch, and keep what it ran."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        compiled = self.kernel[grid](*args, **self.constants, **options)
        self._machine_code[key] = (compiled.run, compiled.function, compiled.packed_metadata)


def _specialisation(args: tuple[Any, ...]) -> list[Any]:
    """What decides which machine code fits these arguments; never coarser than Triton's own rule.

    That makes 1 a constant: the remainders of other integers must not be taken for it.
    """
    return [
        (arg.dtype, arg.data_ptr() % 16)
        if isinstance(arg, Tensor)
        else (arg if arg < 2 or arg >> 31 else 16 + arg % 16)
        if type(arg) is int
        else float
        for arg in args
    ]


@dataclass(frozen=True)
class Launch:
    """One launch as it would reach the device: `args` in the kernel's order, then constexpr parameters by name."""

    kernel: Any
    grid: Grid
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


_record: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect every launch made within, meta tensors' included."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def cdiv(a: int, b: int) -> int:
    """`a / b`, rounded up. Triton's own, made for kernels as well, takes 5 us on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is not below `n` (at least 1)."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


@lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; an H100's for other devices."""
    if device.type != "cuda":
        return H100_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
