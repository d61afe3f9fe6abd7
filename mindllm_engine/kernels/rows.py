"""What the kernels that work on rows share: rows as they lie in memory, tile sizes, and sums over rows.

A weight's gradient is a sum over all rows. Each program adds up its own rows in fp32 registers and writes one row of
partial sums; `sum_rows` adds those in a fixed order, so that the result is the same in every run. It can add straight
into a main gradient, fp32, which then needs no pass of its own.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mindllm_engine.kernels.launch import Program, cdiv, multiprocessors, next_power_of_2
from mindllm_engine.kernels.operator import Operator
from mindllm_engine.kernels.reference import statistics_dtype

# Rows up to this width are held in a program's registers, alone or beside fp32 sums over rows; wider ones are read in
# tiles of TILE columns. Above, the compiler spills.
WIDEST_ROW = 16384
WIDEST_ACCUMULATING_ROW = 8192
TILE = 1024
# Rows that a program of a tiled backward takes for its tile of columns.
WIDE_ROWS = 64
# Warps of all programs on a multiprocessor that the registers of a kernel with sums over rows leave room for.
ACCUMULATING_WARPS = 24
# Columns of a program that adds up partial sums.
SUM_BLOCK = 64
# The same for a kernel of 64 registers a thread.
LIGHT_WARPS = 32

TRITON_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class RowTile(NamedTuple):
    """How a program holds a row: `block` columns at a time by `num_warps` warps."""

    block: int
    num_warps: int


def row_tile(width: int) -> RowTile:
    """For a kernel that holds a row: 16 elements a thread, two 128-bit loads of bf16, up to 16 warps."""
    if width > WIDEST_ROW:
        return RowTile(TILE, 4)
    block = max(16, next_power_of_2(width))
    return RowTile(block, max(1, min(16, block // 512)))


def accumulating_row_tile(width: int) -> RowTile:
    """For a kernel that holds a row and sums over rows: 8 elements a thread up to 8 warps, then 16."""
    if width > WIDEST_ACCUMULATING_ROW:
        return RowTile(TILE, 4)
    block = max(16, next_power_of_2(width))
    return RowTile(block, max(4, min(8, block // 256), block // 512))


def light_row_tile(width: int) -> RowTile:
    """For a kernel that does more than that, up to 8,192 columns: 8 elements a thread keep it at 64 registers."""
    block = max(16, next_power_of_2(width))
    return RowTile(block, max(4, block // 256))


def as_rows(x: Tensor) -> Tensor:
    """`x` (..., width) as (rows, width) with neighbouring columns adjacent; copies only where it must."""
    if x.ndim == 2 and x.stride(1) == 1:
        return x
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def empty_contiguous(x: Tensor) -> Tensor:
    """Uninitialised memory of the shape and dtype of `x`, rows one after the other."""
    return torch.empty_like(x) if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)


def wide_type(dtype: torch.dtype) -> Any:
    """Triton's type in which sums over inputs of `dtype` are taken: fp32, or fp64 for fp64."""
    return TRITON_DTYPES[statistics_dtype(dtype)]


def resident_programs(rows: int, tile: RowTile, device: torch.device, warps: int) -> int:
    """Programs that share `rows` among them: as many as are resident at once, `warps` on a multiprocessor."""
    return min(rows, max(1, warps // tile.num_warps) * multiprocessors(device))


@triton.jit
def load_sum(
    x_ptr, f_ptr, total_ptr, columns, inside, ALPHA: tl.constexpr, HAS_RESIDUAL: tl.constexpr, WIDE: tl.constexpr
):
    """A tile of what a norm takes, in the wide type: x, or alpha * x + f rounded to its dtype, which is stored."""
    x = tl.load(x_ptr + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        f = tl.load(f_ptr + columns, mask=inside, other=0.0)
        x = (x.to(WIDE) * ALPHA + f.to(WIDE)).to(x.dtype)
        tl.store(total_ptr + columns, x, mask=inside)
    return x.to(WIDE)


def main_grad(weight: Tensor) -> Tensor | None:
    """The fp32 gradient that the backward of an operator adds to, instead of returning one for `weight`.

    It is the attribute `weight.main_grad`, which `distributed.FlatParameters` sets. None where the weight is frozen,
    and in compiled graphs, which return gradients. Raises ValueError for one that kernels cannot write as they do.
    """
    into: Tensor | None = None if torch.compiler.is_compiling() else getattr(weight, "main_grad", None)
    if into is None or not weight.requires_grad:
        return None
    if into.shape != weight.shape or into.dtype not in (torch.float32, torch.float64) or not into.is_contiguous():
        raise ValueError(
            f"main_grad must be fp32 (fp64), contiguous and of the parameter's shape {tuple(weight.shape)}, got "
            f"{tuple(into.shape)} {into.dtype} with strides {into.stride()}"
        )
    return current_main_grad(weight)


def current_main_grad(weight: Tensor) -> Tensor:
    """`weight.main_grad`, set to 0 where it still holds what an earlier step left (`weight.main_grad_is_old`)."""
    into: Tensor = weight.main_grad  # type: ignore[attr-defined]
    if getattr(weight, "main_grad_is_old", False):
        into.zero_()
        weight.main_grad_is_old = False  # type: ignore[attr-defined]
    return into


def sum_rows(partial: Tensor, dtype: torch.dtype, into: Tensor | None) -> Tensor | None:
    """The sum over the first dimension of `partial` (programs, width): new in `dtype`, or added to `into` (width,)."""
    if into is None:
        return _sum_rows_operator(partial, dtype)
    _launch_sum_rows(partial, into, add=True)
    return None


def _run_sum_rows(partial: Tensor, dtype: torch.dtype) -> Tensor:
    out = _allocate_sum_rows(partial, dtype)
    _launch_sum_rows(partial, out, add=False)
    return out


def _allocate_sum_rows(partial: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(partial.shape[1], dtype=dtype, device=partial.device)


def _launch_sum_rows(partial: Tensor, out: Tensor, add: bool) -> None:
    programs, width = partial.shape
    _sum_rows_program(width, add)((cdiv(width, SUM_BLOCK), 1, 1), partial, out, programs)


@cache
def _sum_rows_program(width: int, add: bool) -> Program:
    return Program(_sum_rows_kernel, WIDTH=width, ADD=add, ROWS=32, BLOCK=SUM_BLOCK)


@triton.jit
def _sum_rows_kernel(
    partial_ptr, out_ptr, programs, WIDTH: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    total = tl.zeros((ROWS, BLOCK), dtype=partial_ptr.dtype.element_ty)
    for first in range(0, programs, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows[:, None] < programs) & inside[None, :]
        total += tl.load(partial_ptr + rows[:, None].to(tl.int64) * WIDTH + columns[None, :], mask=mask, other=0.0)
    out = tl.sum(total, axis=0)
    if ADD:
        out += tl.load(out_ptr + columns, mask=inside, other=0.0)
    tl.store(out_ptr + columns, out, mask=inside)


_sum_rows_operator = Operator(
    "sum_rows", "(Tensor partial, ScalarType dtype) -> Tensor", _run_sum_rows, _allocate_sum_rows
)
