"""Launches Triton kernels: at a few microseconds of host time a call, and on record where there is no device.

Triton's own `kernel[grid](...)` looks its arguments over anew on each call, 6 us for ten of them. `launch` keeps the
compiled kernel under what Triton specialises on (dtypes, alignment to 16, divisibility by 16), 3 us.

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

_compiled: dict[tuple[Any, ...], Any] = {}
_record: list["Launch"] | None = None


@dataclass(frozen=True)
class Launch:
    """One launch as it would reach the device: `args` in the kernel's order, then constexpr parameters by name."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 1, **constants: Any
) -> None:
    """Run `kernel` over `grid`.

    Args:
        args: tensors, ints and floats (fp32 on the device) in the kernel's order, the first a tensor.
        constants: its constexpr parameters, by name in the kernel's order, after all others.
    """
    first = args[0]
    if _record is not None:
        _record.append(Launch(kernel, grid, args, constants, num_warps, num_stages))
    if first.is_meta or 0 in grid:
        return
    if INTERPRETED:
        kernel[grid](*args, **constants)
        return
    key = (kernel, first.device, num_warps, num_stages, *map(_specialisation, args), *constants.values())
    compiled = _compiled.get(key)
    if compiled is not None and first.get_device() == torch.cuda.current_device():
        compiled[(*grid, 1, 1)[:3]](*args, *constants.values())
        return
    with torch.cuda.device(first.device):
        _compiled[key] = kernel[grid](*args, **constants, num_warps=num_warps, num_stages=num_stages)


def _specialisation(arg: Any) -> Any:
    """What decides which machine code fits this argument; never coarser than Triton's own rule."""
    if isinstance(arg, Tensor):
        return arg.dtype, arg.data_ptr() % 16
    if isinstance(arg, int):
        return arg if arg == 1 else (arg % 16, arg.bit_length() > 31)
    return type(arg)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect every launch made within, meta tensors' included."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


@lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; an H100's for other devices."""
    if device.type != "cuda":
        return H100_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
