"""The bias of a linear layer and the GELU after it, in its tanh form (arXiv 1606.08415).

Bytes an element in bf16: the forward reads x and writes y, 4; the backward reads x and dy and writes dx, 6. Memory
bandwidth bounds both: the GELU is computed again in the backward, and the sum x + bias is never stored.

A program takes a tile of columns and a few rows at a time. The backward's programs, as many as are resident at once,
go on through the rows and keep the sum of dx over theirs, for the bias, in registers.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.activations import activate, activate_and_derivative, refuse_second_backward, take_over
from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, cdiv, next_power_of_2
from mindllm_engine.kernels.operator import Operator, differentiable
from mindllm_engine.kernels.reference import statistics_dtype
from mindllm_engine.kernels.rows import (
    ACCUMULATING_WARPS,
    RowTile,
    as_rows,
    empty_contiguous,
    main_grad,
    resident_programs,
    sum_rows,
    wide_type,
)

# The most columns that a program takes, its columns a thread, and the rows that it takes at a time.
BLOCK = 1024
THREAD_COLUMNS = 8
FORWARD_ROWS = 4
BACKWARD_ROWS = 2


def bias_gelu(x: Tensor, bias: Tensor, *, overwrite: bool = False) -> Tensor:
    """`gelu(x + bias)` in the tanh form.

    Args:
        x: (..., width) of any float dtype.
        bias: (width,) of any float dtype. Where it carries a `main_grad` (fp32), the kernels' backward adds to that and
            returns no gradient for it.
        overwrite: let the backward write the gradient of `x` over its memory instead of allocating. The caller promises
            that nobody needs `x` once the backward has begun; a second backward through a retained graph raises
            RuntimeError. Compiled graphs and the reference ignore it, as do inputs with elements that share memory.

    Returns a tensor like `x`. The kernels compute in fp32 (fp64 for fp64 inputs) and round once; the reference rounds
    the sum too.
    """
    if bias.shape != x.shape[-1:] or 0 in (x.ndim, bias.numel()):
        raise ValueError(f"a bias for the last dimension of {tuple(x.shape)} cannot be {tuple(bias.shape)}")
    if not use_triton(x):
        return F.gelu(x + bias, approximate="tanh").to(x.dtype)
    return _apply_bias_gelu(x, bias, overwrite and not torch.compiler.is_compiling(), main_grad(bias))


class _BiasGELU(torch.autograd.Function):
    again_output = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, overwrite: bool, into: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.overwrite, ctx.into = overwrite, into
        return _forward_operator(x, bias)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        return _forward_operator(*ctx.saved_tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.overwrite:
            refuse_second_backward(ctx, "bias_gelu")
        x, bias = ctx.saved_tensors
        if ctx.overwrite:
            (grad_x,) = take_over(ctx, x)
            partial = _allocate_partial(x)
            _launch_backward(grad_y, x, bias, grad_x, partial)
        else:
            grad_x, partial = _backward_operator(grad_y, x, bias)
        return grad_x, sum_rows(partial, bias.dtype, ctx.into), None, None


_apply_bias_gelu = differentiable(_BiasGELU)


def _run_forward(x: Tensor, bias: Tensor) -> Tensor:
    y = _allocate_forward(x, bias)
    x_rows = as_rows(x)
    rows, width = x_rows.shape
    program = _forward_program(width, x.dtype)
    grid = (cdiv(rows, FORWARD_ROWS) * cdiv(width, program.constants["BLOCK"]), 1, 1)
    program(grid, x_rows, bias.contiguous(), y, x_rows.stride(0), rows)
    return y


def _allocate_forward(x: Tensor, bias: Tensor) -> Tensor:
    return empty_contiguous(x)


def _run_backward(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, partial = _allocate_backward(grad_y, x, bias)
    _launch_backward(grad_y, x, bias, grad_x, partial)
    return grad_x, partial


def _allocate_backward(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return empty_contiguous(x), _allocate_partial(x)


def _allocate_partial(x: Tensor) -> Tensor:
    """A row of partial sums of the bias's gradient for each group of programs that covers the columns."""
    width = x.shape[-1]
    tile = _tile(width)
    steps = cdiv(x.numel() // width, BACKWARD_ROWS)
    column_blocks = cdiv(width, tile.block)
    programs = resident_programs(steps * column_blocks, tile, x.device, ACCUMULATING_WARPS)
    groups = min(steps, max(1, programs // column_blocks))
    return torch.empty(groups, width, dtype=statistics_dtype(x.dtype), device=x.device)


def _launch_backward(grad_y: Tensor, x: Tensor, bias: Tensor, grad_x: Tensor, partial: Tensor) -> None:
    tensors = [as_rows(value) for value in (grad_y, x, grad_x)]
    rows, width = tensors[0].shape
    program = _backward_program(width, x.dtype)
    grid = (cdiv(width, program.constants["BLOCK"]), partial.shape[0], 1)
    program(grid, *tensors, bias.contiguous(), partial, *(value.stride(0) for value in tensors), rows)


@cache
def _forward_program(width: int, dtype: torch.dtype) -> Program:
    tile = _tile(width)
    constants = {"WIDTH": width, "WIDE": wide_type(dtype), "ROWS": FORWARD_ROWS, "BLOCK": tile.block}
    return Program(_bias_gelu_forward_kernel, tile.num_warps, **constants)


@cache
def _backward_program(width: int, dtype: torch.dtype) -> Program:
    tile = _tile(width)
    constants = {"WIDTH": width, "WIDE": wide_type(dtype), "ROWS": BACKWARD_ROWS, "BLOCK": tile.block}
    return Program(_bias_gelu_backward_kernel, tile.num_warps, **constants)


def _tile(width: int) -> RowTile:
    block = min(BLOCK, max(16, next_power_of_2(width)))
    return RowTile(block, max(1, block // (32 * THREAD_COLUMNS)))


@triton.jit
def _bias_gelu_forward_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    x_stride,
    rows,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of BLOCK columns a program."""
    blocks: tl.constexpr = tl.cdiv(WIDTH, BLOCK)
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = program % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (columns < WIDTH)
    bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(WIDE)
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(WIDE)
    tl.store(y_ptr + row * WIDTH + columns, activate(x + bias, "tanh").to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _bias_gelu_backward_kernel(
    grad_y_ptr,
    x_ptr,
    grad_x_ptr,
    bias_ptr,
    partial_ptr,
    grad_y_stride,
    x_stride,
    grad_x_stride,
    rows,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns a program, and every so many-th ROWS rows, each read before it is written: dx may lie over x."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    existing = columns < WIDTH
    bias = tl.load(bias_ptr + columns, mask=existing, other=0.0).to(WIDE)
    total = tl.zeros((BLOCK,), dtype=WIDE)
    group = tl.program_id(1).to(tl.int64)
    for first in range(group * ROWS, rows, tl.num_programs(1) * ROWS):
        row = (first + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & existing[None, :]
        x = tl.load(x_ptr + row * x_stride + columns[None, :], mask=inside, other=0.0).to(WIDE)
        grad = tl.load(grad_y_ptr + row * grad_y_stride + columns[None, :], mask=inside, other=0.0).to(WIDE)
        _, derivative = activate_and_derivative(x + bias[None, :], "tanh")
        grad *= derivative
        tl.store(grad_x_ptr + row * grad_x_stride + columns[None, :], grad.to(x_ptr.dtype.element_ty), mask=inside)
        total += tl.sum(grad, axis=0)
    tl.store(partial_ptr + group * WIDTH + columns, total, mask=existing)


_forward_operator = Operator("bias_gelu", "(Tensor x, Tensor bias) -> Tensor", _run_forward, _allocate_forward)
_backward_operator = Operator(
    "bias_gelu_backward",
    "(Tensor grad_y, Tensor x, Tensor bias) -> (Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)
