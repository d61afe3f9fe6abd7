"""The sum of squares of a flat buffer, as clipping by global norm needs it.

Reads each element once, 4 bytes in fp32; bound by memory bandwidth. A program adds CHUNK squares in fp32 and writes
their sum; one more program adds those sums in fp64. The grid depends on the number of elements alone, and nothing is
added atomically, so the result is the same in every run and on every GPU.

Each square passes through 16 additions in its lane and at most 24 between lanes, whatever the number of elements, and
all terms are positive: the relative error is below 42 * 2^-24 = 2.5e-6, and as a rule under 1e-7.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, cdiv
from mindllm_engine.kernels.operator import Operator

# Squares that one program adds, and how many at a time: by 8 warps, with four 128-bit loads of fp32 a thread in flight.
CHUNK = 1 << 16
BLOCK = 4096


@torch.no_grad()
def square_norm(x: Tensor) -> Tensor:
    """The sum of the squares of `x` (elements,), contiguous, fp32, bf16 or fp16: () fp32 on the same device.

    The square and not its root, since squares of shards add up. NaN and infinity propagate.
    """
    if x.ndim != 1 or not x.is_contiguous() or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"square_norm takes a flat contiguous buffer of fp32, bf16 or fp16, got {tuple(x.shape)} {x.dtype} with "
            f"strides {x.stride()}"
        )
    if not use_triton(x):
        return torch.linalg.vector_norm(x, dtype=torch.float32).square()
    return _square_norm_operator(x)


def _run(x: Tensor) -> Tensor:
    out = _allocate(x)
    programs = cdiv(x.numel(), CHUNK)
    partial = torch.empty(programs, dtype=torch.float32, device=x.device)
    squares, total = _programs()
    squares((programs, 1, 1), x, partial, x.numel())
    total((1, 1, 1), partial, out, programs)
    return out


@cache
def _programs() -> tuple[Program, Program]:
    return Program(_square_norm_squares_kernel, 8, CHUNK=CHUNK, BLOCK=BLOCK), Program(
        _square_norm_sum_kernel, 8, BLOCK=BLOCK
    )


def _allocate(x: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=x.device)


@triton.jit
def _square_norm_squares_kernel(x_ptr, partial_ptr, elements, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """CHUNK elements a program: whole blocks, which need no mask and so are read 128 bits at a time, then the rest."""
    start = tl.program_id(0).to(tl.int64) * CHUNK
    x_ptr += start
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    length = tl.minimum(elements - start, CHUNK)
    whole = length // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        x = tl.load(x_ptr + first + lanes).to(tl.float32)
        total += x * x
    if whole < length:
        x = tl.load(x_ptr + whole + lanes, mask=whole + lanes < length, other=0.0).to(tl.float32)
        total += x * x
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _square_norm_sum_kernel(partial_ptr, out_ptr, programs, BLOCK: tl.constexpr):
    """One program adds all partial sums."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, programs, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + lanes, mask=lanes < programs, other=0.0).to(tl.float64)
    tl.store(out_ptr, tl.sum(total, axis=0).to(tl.float32))


_square_norm_operator = Operator("square_norm", "(Tensor x) -> Tensor", _run, _allocate)
