"""The token embedding and the RMSNorm after it, in one pass.

Bytes an element in bf16: the forward reads a row of the table for each token and writes y, 4. The backward reads dy, 2,
and for each distinct token its row of the table, 2, and its row of the main gradient, which it writes back, 8; without
a main gradient it writes the whole dense one, 2 for each element of the table. Memory bandwidth bounds all of them.

The backward needs no atomics. All rows of one token share x_hat and rstd, and their gradient is linear in dy:

    dtable[t] = rstd * (w * S - x_hat * mean(w * S * x_hat)),  dweight = sum over t of S * x_hat,

S the sum of dy over the token's rows. Tokens are sorted (stable), so that the rows of one token are a run of sorted
positions. The first kernel cuts the positions into chunks and sums the part of each run that lies in a chunk; the
second adds the parts of a run and writes its row of the gradient. Every row is thus written by one program, sums are
taken in the same order each time, and a token that fills much of the batch is spread over many programs. The sums of
parts cost 8 bytes an element of a distinct token, written and read. One kernel that did both would save them, but
holds over 100 registers a thread, too many to keep the memory busy.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, cdiv
from mindllm_engine.kernels.operator import Operator, differentiable
from mindllm_engine.kernels.reference import statistics_dtype
from mindllm_engine.kernels.rms_norm import rms_norm
from mindllm_engine.kernels.rows import (
    LIGHT_WARPS,
    WIDEST_ACCUMULATING_ROW,
    as_rows,
    light_row_tile,
    main_grad,
    resident_programs,
    row_tile,
    sum_rows,
    wide_type,
)

# Sorted positions that a program sums over, and columns.
CHUNK, SUM_TILE = 32, 512


def embedding_norm(tokens: Tensor, table: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm(table[tokens])`.

    Args:
        tokens: (T,) int32 or int64 below vocab. The loader's token files hold no others. The kernels give a row of NaN
            for another id, and touch no memory for it; the reference raises IndexError.
        table: (vocab, width) of any float dtype. Where it carries a `main_grad` (fp32), backward adds to the rows of
            that which occur in `tokens`, and returns no gradient for the table; otherwise it returns a dense one.
        weight: (width,) of any float dtype; its `main_grad` likewise.

    Returns (T, width) in the dtype of `table`. Rows wider than 8,192 take two operators, the gather and the norm.
    """
    if tokens.ndim != 1 or tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"tokens must be (T,) int32 or int64, got {tuple(tokens.shape)} {tokens.dtype}")
    if table.ndim != 2 or weight.shape != table.shape[1:]:
        raise ValueError(f"a table of {tuple(table.shape)} and a weight of {tuple(weight.shape)} do not agree")
    if not use_triton(table) or table.shape[1] > WIDEST_ACCUMULATING_ROW:
        return rms_norm(F.embedding(tokens, table), weight, eps)
    return _apply_embedding_norm(tokens, table, weight, eps, main_grad(table), main_grad(weight))


class _EmbeddingNorm(torch.autograd.Function):
    again_output = 0

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        table: Tensor,
        weight: Tensor,
        eps: float,
        table_into: Tensor | None,
        weight_into: Tensor | None,
    ) -> Tensor:
        y, rstd = _forward_operator(tokens, table, weight, eps)
        ctx.save_for_backward(tokens, table, weight, rstd)
        ctx.eps, ctx.table_into, ctx.weight_into = eps, table_into, weight_into
        return y

    @staticmethod
    def again(ctx: Any) -> Tensor:
        tokens, table, weight, _ = ctx.saved_tensors
        return _forward_operator(tokens, table, weight, ctx.eps)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        tokens, table, weight, rstd = ctx.saved_tensors
        grad_table = None
        if ctx.table_into is None:
            grad_table, partial = _backward_operator(grad_y, tokens, table, weight, rstd)
        else:
            partial = _allocate_partial(table, rstd)
            _launch_backward(grad_y, tokens, table, weight, rstd, ctx.table_into, partial, add=True)
        return None, grad_table, sum_rows(partial, weight.dtype, ctx.weight_into), None, None, None


_apply_embedding_norm = differentiable(_EmbeddingNorm)


def _run_forward(tokens: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, rstd = _allocate_forward(tokens, table, weight, eps)
    rows = as_rows(table)
    vocab, width = rows.shape
    program = _forward_program(width, vocab, eps, table.dtype)
    program((tokens.shape[0], 1, 1), tokens.contiguous(), rows, weight.contiguous(), y, rstd, rows.stride(0))
    return y, rstd


def _allocate_forward(tokens: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y = torch.empty(tokens.shape[0], table.shape[1], dtype=table.dtype, device=table.device)
    return y, torch.empty(tokens.shape[0], dtype=statistics_dtype(table.dtype), device=table.device)


@cache
def _forward_program(width: int, vocab: int, eps: float, dtype: torch.dtype) -> Program:
    tile = row_tile(width)
    constants = {"WIDTH": width, "VOCAB": vocab, "EPS": eps, "WIDE": wide_type(dtype), "BLOCK": tile.block}
    return Program(_embedding_norm_forward_kernel, tile.num_warps, **constants)


@triton.jit
def _embedding_norm_forward_kernel(
    token_ptr,
    table_ptr,
    w_ptr,
    y_ptr,
    rstd_ptr,
    table_stride,
    WIDTH: tl.constexpr,
    VOCAB: tl.constexpr,
    EPS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    token = tl.load(token_ptr + row).to(tl.int64)
    known = (token >= 0) & (token < VOCAB)
    x = tl.load(table_ptr + token * table_stride + columns, mask=inside & known, other=0.0).to(WIDE)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(WIDE)
    rstd = tl.where(known, tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + EPS), float("nan"))
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + row * WIDTH + columns, (x * rstd * w).to(y_ptr.dtype.element_ty), mask=inside)


def _run_backward(grad_y: Tensor, tokens: Tensor, table: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    grad_table = torch.zeros(table.shape, dtype=table.dtype, device=table.device)
    partial = _allocate_partial(table, rstd)
    _launch_backward(grad_y, tokens, table, weight, rstd, grad_table, partial, add=False)
    return grad_table, partial


def _allocate_backward(
    grad_y: Tensor, tokens: Tensor, table: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty(table.shape, dtype=table.dtype, device=table.device), _allocate_partial(table, rstd)


def _allocate_partial(table: Tensor, rstd: Tensor) -> Tensor:
    """Rows of partial sums of the weight's gradient."""
    width = table.shape[1]
    programs = resident_programs(rstd.shape[0], light_row_tile(width), table.device, LIGHT_WARPS)
    return torch.empty(programs, width, dtype=rstd.dtype, device=table.device)


def _launch_backward(
    grad_y: Tensor,
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    rstd: Tensor,
    grad_table: Tensor,
    partial: Tensor,
    add: bool,
) -> None:
    """Write, or add to, the rows of `grad_table` that occur in `tokens`; fill `partial`."""
    sorted_tokens, order = torch.sort(tokens, stable=True)
    grad_rows, table_rows = as_rows(grad_y), as_rows(table)
    positions, width = grad_rows.shape
    # The sum of the part of a run that begins at a sorted position; other rows stay unwritten.
    sums = torch.empty(positions, width, dtype=rstd.dtype, device=table.device)
    sum_parts, finish_runs = _backward_programs(width, table.shape[0], CHUNK, add, table.dtype)
    grid = (cdiv(positions, CHUNK), cdiv(width, SUM_TILE), 1)
    sum_parts(grid, grad_rows, order, sorted_tokens, sums, grad_rows.stride(0), positions)
    tensors = (sums, order, sorted_tokens, table_rows, weight.contiguous(), rstd, grad_table, partial)
    finish_runs((partial.shape[0], 1, 1), *tensors, table_rows.stride(0), positions)


@cache
def _backward_programs(width: int, vocab: int, chunk: int, add: bool, dtype: torch.dtype) -> tuple[Program, Program]:
    wide, tile = wide_type(dtype), light_row_tile(width)
    return (
        Program(_embedding_norm_sum_parts_kernel, num_warps=2, WIDTH=width, CHUNK=chunk, WIDE=wide, BLOCK=SUM_TILE),
        Program(
            _embedding_norm_finish_runs_kernel,
            tile.num_warps,
            WIDTH=width,
            VOCAB=vocab,
            CHUNK=chunk,
            ADD=add,
            WIDE=wide,
            BLOCK=tile.block,
        ),
    )


@triton.jit
def _embedding_norm_sum_parts_kernel(
    grad_y_ptr,
    order_ptr,
    sorted_ptr,
    sum_ptr,
    grad_y_stride,
    positions,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk of sorted positions and a tile of columns a program: sums of dy over the parts of runs in the chunk."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    end = min(begin + CHUNK, positions)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    start = begin
    total = tl.zeros((BLOCK,), dtype=WIDE)
    for position in range(begin, end):
        row = tl.load(order_ptr + position)
        total += tl.load(grad_y_ptr + row * grad_y_stride + columns, mask=inside, other=0.0).to(WIDE)
        after = min(position + 1, end - 1)
        if (position == after) | (tl.load(sorted_ptr + position) != tl.load(sorted_ptr + after)):
            tl.store(sum_ptr + start * WIDTH + columns, total, mask=inside)
            total = tl.zeros((BLOCK,), dtype=WIDE)
            start = after


@triton.jit
def _embedding_norm_finish_runs_kernel(
    sum_ptr,
    order_ptr,
    sorted_ptr,
    table_ptr,
    w_ptr,
    rstd_ptr,
    grad_table_ptr,
    partial_ptr,
    table_stride,
    positions,
    WIDTH: tl.constexpr,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    ADD: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every so many-th sorted position a program; where a run begins, it finishes the run."""
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    w = tl.load(w_ptr + columns, mask=inside, other=0.0)
    grad_w = tl.zeros((BLOCK,), dtype=WIDE)
    for position in range(tl.program_id(0).to(tl.int64), positions, tl.num_programs(0)):
        token = tl.load(sorted_ptr + position).to(tl.int64)
        if (position == 0) | (tl.load(sorted_ptr + max(position - 1, 0)) != token):
            total = tl.load(sum_ptr + position * WIDTH + columns, mask=inside, other=0.0)
            part = position // CHUNK * CHUNK + CHUNK
            while (part < positions) & (tl.load(sorted_ptr + min(part, positions - 1)) == token):
                total += tl.load(sum_ptr + part * WIDTH + columns, mask=inside, other=0.0)
                part += CHUNK
            known = inside & (token >= 0) & (token < VOCAB)
            rstd = tl.load(rstd_ptr + tl.load(order_ptr + position))
            x = tl.load(table_ptr + token * table_stride + columns, mask=known, other=0.0)
            x_hat = x.to(WIDE) * rstd
            grad_w += total * x_hat
            grad = total * w.to(WIDE)
            grad = rstd * (grad - x_hat * (tl.sum(grad * x_hat, axis=0) / WIDTH))
            grad_row = grad_table_ptr + token * WIDTH + columns
            if ADD:
                grad += tl.load(grad_row, mask=known, other=0.0)
            tl.store(grad_row, grad.to(grad_table_ptr.dtype.element_ty), mask=known)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * WIDTH + columns, grad_w, mask=inside)


_forward_operator = Operator(
    "embedding_norm",
    "(Tensor tokens, Tensor table, Tensor weight, float eps) -> (Tensor, Tensor)",
    _run_forward,
    _allocate_forward,
)
_backward_operator = Operator(
    "embedding_norm_backward",
    "(Tensor grad_y, Tensor tokens, Tensor table, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)
