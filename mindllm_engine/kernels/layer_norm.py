"""LayerNorm (arXiv 1607.06450), alone and with the residual addition before it.

Bytes an element in bf16: `layer_norm` reads x and writes y, 4; its backward reads x and dy and writes dx, 6. With the
residual, the forward reads x and f and writes their sum and y, 8; the backward reads the sum and the gradients of both
outputs and writes one gradient, that of x and of f alike, 8. Memory bandwidth bounds all of them.

The variance is the mean square of what is left when the mean is taken off. Where a program holds the row, up to 16,384
columns, it takes the mean first; of a wider row, read in tiles, each lane keeps a running mean and sum of squared
deviations (Welford 1962), which are merged at the end (Chan et al. 1979), and the tiles are read again, from the L2
cache, for the output. The backward holds the row and the partial sums of dweight and dbias up to 8,192 columns; beyond,
it takes two means of each row first and then works on tiles of many rows, and reads x and dy twice.
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
from mindllm_engine.kernels.rows import (
    LIGHT_WARPS,
    TILE,
    WIDE_ROWS,
    WIDEST_ACCUMULATING_ROW,
    WIDEST_ROW,
    as_rows,
    empty_contiguous,
    light_row_tile,
    load_sum,
    main_grad,
    resident_programs,
    row_tile,
    sum_rows,
    wide_type,
)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension; statistics in fp32.

    Args:
        x: (..., width) of any float dtype.
        weight, bias: (width,) of any float dtype. Where one carries a `main_grad` (fp32), backward adds to that and
            returns no gradient for it.

    Returns (..., width) in the dtype of `x`.
    """
    _check_width(x, weight, bias)
    if not use_triton(x):
        return _reference(x, weight, bias, eps)
    return _apply_layer_norm(x, weight, bias, eps, main_grad(weight), main_grad(bias))


def residual_layer_norm(x: Tensor, f: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + f` and its `layer_norm`, in one pass: the residual stream and the input of the next branch.

    The sum is rounded to the dtype of `x`, and what is normalised is the rounded one. `x` and the branch's output `f`
    are (..., width); the other arguments are those of `layer_norm`.
    """
    _check_width(x, weight, bias)
    if x.shape != f.shape or x.dtype != f.dtype:
        raise ValueError(f"x and f must agree, got {tuple(x.shape)} {x.dtype} and {tuple(f.shape)} {f.dtype}")
    if not use_triton(x):
        total = x + f
        return total, _reference(total, weight, bias, eps)
    return _apply_residual_layer_norm(x, f, weight, bias, eps, main_grad(weight), main_grad(bias))


def _check_width(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:] or 0 in (x.ndim, weight.numel()):
        raise ValueError(
            f"a norm over the last dimension of {tuple(x.shape)} has no weight of {tuple(weight.shape)} "
            f"and bias of {tuple(bias.shape)}"
        )


def _reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    output: Tensor = _Reference.apply(x, weight.to(x.dtype), bias.to(x.dtype), eps)
    return output


class _Reference(torch.autograd.Function):
    """torch's own operator, with an output that can be computed again (its own node does not say `eps`)."""

    again_output = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def again(ctx: Any) -> Tensor:
        x, weight, bias, _, _ = ctx.saved_tensors
        return F.layer_norm(x, weight.shape, weight, bias, ctx.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        return *torch.ops.aten.native_layer_norm_backward(
            grad_y, x, weight.shape, mean, rstd, weight, bias, needed
        ), None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        weight_into: Tensor | None,
        bias_into: Tensor | None,
    ) -> Tensor:
        y, statistics = _forward_operator(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.weight_into, ctx.bias_into = weight_into, bias_into
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, grad_y, None), None, None, None


class _ResidualLayerNorm(torch.autograd.Function):
    again_output = 1

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        f: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        weight_into: Tensor | None,
        bias_into: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        total, y, statistics = _residual_forward_operator(x, f, weight, bias, eps)
        ctx.save_for_backward(total, weight, bias, statistics)
        ctx.eps, ctx.weight_into, ctx.bias_into = eps, weight_into, bias_into
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    def again(ctx: Any) -> Tensor:
        """The norm alone, of the sum as it was rounded: the same arithmetic on the same tile of a row."""
        total, weight, bias, _ = ctx.saved_tensors
        return _forward_operator(total, weight, bias, ctx.eps)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_y is None:  # nobody used the norm
            return grad_total, grad_total, None, None, None, None, None
        grad, grad_weight, grad_bias = _backward(ctx, grad_y, grad_total)
        return grad, grad, grad_weight, grad_bias, None, None, None


_apply_layer_norm = differentiable(_LayerNorm)
_apply_residual_layer_norm = differentiable(_ResidualLayerNorm)


def _backward(ctx: Any, grad_y: Tensor, grad_total: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of what was normalised, of the weight and of the bias."""
    x, weight, bias, statistics = ctx.saved_tensors
    grad, partial_weight, partial_bias = _backward_operator(grad_y, grad_total, x, weight, statistics)
    grad_weight = sum_rows(partial_weight, weight.dtype, ctx.weight_into)
    return grad, grad_weight, sum_rows(partial_bias, bias.dtype, ctx.bias_into)


def _run_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, statistics = _allocate_forward(x, weight, bias, eps)
    _launch_forward(x, None, weight, bias, None, y, statistics, eps)
    return y, statistics


def _allocate_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y, and the mean and 1 / sqrt(variance + eps) of each row in turn, (2 * rows,)."""
    y = empty_contiguous(x)
    return y, x.new_empty(2 * (x.numel() // x.shape[-1]), dtype=statistics_dtype(x.dtype))


def _run_residual_forward(
    x: Tensor, f: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    total, y, statistics = _allocate_residual_forward(x, f, weight, bias, eps)
    _launch_forward(x, f, weight, bias, total, y, statistics, eps)
    return total, y, statistics


def _allocate_residual_forward(
    x: Tensor, f: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, statistics = _allocate_forward(x, weight, bias, eps)
    return torch.empty_like(y), y, statistics


def _launch_forward(
    x: Tensor,
    f: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    total: Tensor | None,
    y: Tensor,
    statistics: Tensor,
    eps: float,
) -> None:
    x_rows = as_rows(x)
    f_rows = x_rows if f is None else as_rows(f)
    if total is None:
        total = y
    program = _forward_program(x.shape[-1], eps, f is not None, x.dtype)
    strides = (x_rows.stride(0), f_rows.stride(0))
    vectors = (weight.contiguous(), bias.contiguous())
    program((x_rows.shape[0], 1, 1), x_rows, f_rows, *vectors, total, y, statistics, *strides)


@cache
def _forward_program(width: int, eps: float, has_residual: bool, dtype: torch.dtype) -> Program:
    tile = row_tile(width)
    return Program(
        _layer_norm_forward_kernel if width <= WIDEST_ROW else _layer_norm_wide_forward_kernel,
        tile.num_warps,
        WIDTH=width,
        EPS=eps,
        HAS_RESIDUAL=has_residual,
        WIDE=wide_type(dtype),
        BLOCK=tile.block,
    )


@triton.jit
def _store_normalised(y_ptr, w_ptr, b_ptr, x_hat, columns, inside, WIDE: tl.constexpr):
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(WIDE)
    b = tl.load(b_ptr + columns, mask=inside, other=0.0).to(WIDE)
    tl.store(y_ptr + columns, (x_hat * w + b).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _layer_norm_forward_kernel(
    x_ptr,
    f_ptr,
    w_ptr,
    b_ptr,
    total_ptr,
    y_ptr,
    statistics_ptr,
    x_stride,
    f_stride,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x_ptr += row * x_stride
    x = load_sum(x_ptr, f_ptr + row * f_stride, total_ptr + row * WIDTH, columns, inside, 1.0, HAS_RESIDUAL, WIDE)
    mean = tl.sum(x, axis=0) / WIDTH
    x = tl.where(inside, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + EPS)
    tl.store(statistics_ptr + 2 * row, mean)
    tl.store(statistics_ptr + 2 * row + 1, rstd)
    _store_normalised(y_ptr + row * WIDTH, w_ptr, b_ptr, x * rstd, columns, inside, WIDE)


@triton.jit
def _layer_norm_wide_forward_kernel(
    x_ptr,
    f_ptr,
    w_ptr,
    b_ptr,
    total_ptr,
    y_ptr,
    statistics_ptr,
    x_stride,
    f_stride,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program, in tiles: once for its mean and variance, once, from the L2 cache, for the output."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    f_ptr += row * f_stride
    total_ptr += row * WIDTH
    y_ptr += row * WIDTH
    means = tl.zeros((BLOCK,), dtype=WIDE)
    squares = tl.zeros((BLOCK,), dtype=WIDE)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        x = load_sum(x_ptr, f_ptr, total_ptr, columns, inside, 1.0, HAS_RESIDUAL, WIDE)
        deviation = tl.where(inside, x - means, 0.0)
        means += deviation / (first // BLOCK + 1)
        squares += deviation * (x - means)
    counts = (WIDTH - tl.arange(0, BLOCK) + BLOCK - 1) // BLOCK  # elements that each lane has seen
    mean = tl.sum(means * counts, axis=0) / WIDTH
    squares += (means - mean) * (means - mean) * counts
    rstd = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + EPS)
    tl.store(statistics_ptr + 2 * row, mean)
    tl.store(statistics_ptr + 2 * row + 1, rstd)
    # Each thread reads back what it has stored itself.
    source_ptr = total_ptr if HAS_RESIDUAL else x_ptr
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        x = tl.load(source_ptr + columns, mask=inside, other=0.0).to(WIDE)
        _store_normalised(y_ptr, w_ptr, b_ptr, (x - mean) * rstd, columns, inside, WIDE)


def _run_backward(
    grad_y: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _allocate_backward(grad_y, grad_total, x, weight, statistics)
    _launch_backward(grad_y, grad_total, x, weight, statistics, *outputs)
    return outputs


def _allocate_backward(
    grad_y: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of `x`, and rows of partial sums of the weight's and the bias's."""
    grad = empty_contiguous(x)
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    if width > WIDEST_ACCUMULATING_ROW:
        programs = cdiv(rows, WIDE_ROWS)
    else:
        programs = resident_programs(rows, light_row_tile(width), x.device, LIGHT_WARPS)
    partial_weight = torch.empty(programs, width, dtype=statistics.dtype, device=x.device)
    return grad, partial_weight, torch.empty_like(partial_weight)


def _launch_backward(
    grad_y: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    weight: Tensor,
    statistics: Tensor,
    grad: Tensor,
    partial_weight: Tensor,
    partial_bias: Tensor,
) -> None:
    """Write `grad`, the gradient of `x` through both outputs, and the rows of partial sums."""
    grad_rows, x_rows = as_rows(grad_y), as_rows(x)
    grad_total_rows = grad_rows if grad_total is None else as_rows(grad_total)
    weight = weight.contiguous()
    rows, width = x_rows.shape
    tensors = (grad_rows, grad_total_rows, x_rows, weight, statistics, grad, partial_weight, partial_bias)
    strides = (grad_rows.stride(0), grad_total_rows.stride(0), x_rows.stride(0))
    programs = partial_weight.shape[0]
    if width <= WIDEST_ACCUMULATING_ROW:
        program = _backward_program(width, grad_total is not None, x.dtype)
        program((programs, 1, 1), *tensors, *strides, rows)
        return
    take_means, program = _wide_backward_programs(width, grad_total is not None, WIDE_ROWS, x.dtype)
    means = torch.empty_like(statistics)
    take_means((rows, 1, 1), grad_rows, x_rows, weight, statistics, means, grad_rows.stride(0), x_rows.stride(0))
    program((cdiv(width, TILE), programs, 1), *tensors, means, *strides, rows)


@cache
def _backward_program(width: int, has_grad_total: bool, dtype: torch.dtype) -> Program:
    tile = light_row_tile(width)
    constants = {"WIDTH": width, "HAS_GRAD_TOTAL": has_grad_total, "WIDE": wide_type(dtype), "BLOCK": tile.block}
    return Program(_layer_norm_backward_kernel, tile.num_warps, **constants)


@cache
def _wide_backward_programs(
    width: int, has_grad_total: bool, wide_rows: int, dtype: torch.dtype
) -> tuple[Program, Program]:
    wide = wide_type(dtype)
    return (
        Program(_layer_norm_wide_means_kernel, WIDTH=width, WIDE=wide, BLOCK=TILE),
        Program(
            _layer_norm_wide_backward_kernel,
            WIDTH=width,
            HAS_GRAD_TOTAL=has_grad_total,
            WIDE=wide,
            ROWS=wide_rows,
            BLOCK=TILE,
        ),
    )


@triton.jit
def _store_gradient(grad_total_ptr, out_ptr, grad, columns, inside, HAS_GRAD_TOTAL: tl.constexpr):
    if HAS_GRAD_TOTAL:
        grad += tl.load(grad_total_ptr + columns, mask=inside, other=0.0).to(grad.dtype)
    tl.store(out_ptr + columns, grad.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _layer_norm_backward_kernel(
    grad_y_ptr,
    grad_total_ptr,
    x_ptr,
    w_ptr,
    statistics_ptr,
    out_ptr,
    partial_weight_ptr,
    partial_bias_ptr,
    grad_y_stride,
    grad_total_stride,
    x_stride,
    rows,
    WIDTH: tl.constexpr,
    HAS_GRAD_TOTAL: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every so many-th row a program, one after the other; the sums of dy * x_hat and dy stay in registers.

    dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)), g = dy * weight, x_hat = (x - mean) * rstd.
    """
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    w = tl.load(w_ptr + columns, mask=inside, other=0.0)
    grad_w = tl.zeros((BLOCK,), dtype=WIDE)
    grad_b = tl.zeros((BLOCK,), dtype=WIDE)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        mean = tl.load(statistics_ptr + 2 * row)
        rstd = tl.load(statistics_ptr + 2 * row + 1)
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
        grad = tl.load(grad_y_ptr + row * grad_y_stride + columns, mask=inside, other=0.0).to(WIDE)
        x_hat = (x.to(WIDE) - mean) * rstd
        grad_w += grad * x_hat
        grad_b += grad
        grad *= w.to(WIDE)
        mean_grad = tl.sum(grad, axis=0) / WIDTH
        mean_product = tl.sum(grad * x_hat, axis=0) / WIDTH
        _store_gradient(
            grad_total_ptr + row * grad_total_stride,
            out_ptr + row * WIDTH,
            rstd * (grad - mean_grad - x_hat * mean_product),
            columns,
            inside,
            HAS_GRAD_TOTAL,
        )
    program = tl.program_id(0).to(tl.int64)
    tl.store(partial_weight_ptr + program * WIDTH + columns, grad_w, mask=inside)
    tl.store(partial_bias_ptr + program * WIDTH + columns, grad_b, mask=inside)


@triton.jit
def _layer_norm_wide_means_kernel(
    grad_y_ptr,
    x_ptr,
    w_ptr,
    statistics_ptr,
    means_ptr,
    grad_y_stride,
    x_stride,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """mean(dy * weight) and mean(dy * weight * x_hat) of a row."""
    row = tl.program_id(0).to(tl.int64)
    mean = tl.load(statistics_ptr + 2 * row)
    rstd = tl.load(statistics_ptr + 2 * row + 1)
    grads = tl.zeros((BLOCK,), dtype=WIDE)
    products = tl.zeros((BLOCK,), dtype=WIDE)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(WIDE)
        grad = tl.load(grad_y_ptr + row * grad_y_stride + columns, mask=inside, other=0.0).to(WIDE)
        grad *= tl.load(w_ptr + columns, mask=inside, other=0.0).to(WIDE)
        grads += grad
        products += (x - mean) * rstd * grad
    tl.store(means_ptr + 2 * row, tl.sum(grads, axis=0) / WIDTH)
    tl.store(means_ptr + 2 * row + 1, tl.sum(products, axis=0) / WIDTH)


@triton.jit
def _layer_norm_wide_backward_kernel(
    grad_y_ptr,
    grad_total_ptr,
    x_ptr,
    w_ptr,
    statistics_ptr,
    out_ptr,
    partial_weight_ptr,
    partial_bias_ptr,
    means_ptr,
    grad_y_stride,
    grad_total_stride,
    x_stride,
    rows,
    WIDTH: tl.constexpr,
    HAS_GRAD_TOTAL: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of columns and ROWS rows a program, with the rows' two means given."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    group = tl.program_id(1).to(tl.int64)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(WIDE)
    grad_w = tl.zeros((BLOCK,), dtype=WIDE)
    grad_b = tl.zeros((BLOCK,), dtype=WIDE)
    for row in range(group * ROWS, min(group * ROWS + ROWS, rows)):
        mean = tl.load(statistics_ptr + 2 * row)
        rstd = tl.load(statistics_ptr + 2 * row + 1)
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
        grad = tl.load(grad_y_ptr + row * grad_y_stride + columns, mask=inside, other=0.0).to(WIDE)
        x_hat = (x.to(WIDE) - mean) * rstd
        grad_w += grad * x_hat
        grad_b += grad
        mean_grad = tl.load(means_ptr + 2 * row)
        mean_product = tl.load(means_ptr + 2 * row + 1)
        _store_gradient(
            grad_total_ptr + row * grad_total_stride,
            out_ptr + row * WIDTH,
            rstd * (grad * w - mean_grad - x_hat * mean_product),
            columns,
            inside,
            HAS_GRAD_TOTAL,
        )
    tl.store(partial_weight_ptr + group * WIDTH + columns, grad_w, mask=inside)
    tl.store(partial_bias_ptr + group * WIDTH + columns, grad_b, mask=inside)


_forward_operator = Operator(
    "layer_norm",
    "(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    _run_forward,
    _allocate_forward,
)
_residual_forward_operator = Operator(
    "residual_layer_norm",
    "(Tensor x, Tensor f, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    _run_residual_forward,
    _allocate_residual_forward,
)
_backward_operator = Operator(
    "layer_norm_backward",
    "(Tensor grad_y, Tensor? grad_total, Tensor x, Tensor weight, Tensor statistics) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)
