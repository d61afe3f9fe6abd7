"""RMSNorm (arXiv 1910.07467, equation 4) and the DeepNorm residual around it (arXiv 2203.00555, section 4).

Bytes an element in bf16: `rms_norm` reads x and writes y, 4; its backward reads x and dy and writes dx, 6. The residual
reads x and f and writes y and their sum, 8; its backward reads the sum and dy and writes dx and df, 8. Memory bandwidth
bounds all of them.

A program of the forward holds a row in registers up to 16,384 columns; a wider row is read twice, in tiles, the second
time from the L2 cache. The backward holds the row and the partial sums of dweight up to 8,192 columns; beyond, it takes
each row's dot product first and then works on tiles of many rows, and reads x and dy twice.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, cdiv
from mindllm_engine.kernels.operator import Operator, differentiable
from mindllm_engine.kernels.reference import row_blocks, rows_per_block, statistics_dtype
from mindllm_engine.kernels.rms_norm_kernels import (
    rms_norm_backward_kernel,
    rms_norm_forward_kernel,
    rms_norm_wide_backward_kernel,
    rms_norm_wide_dot_kernel,
    rms_norm_wide_forward_kernel,
)
from mindllm_engine.kernels.rows import (
    ACCUMULATING_WARPS,
    TILE,
    WIDE_ROWS,
    WIDEST_ACCUMULATING_ROW,
    WIDEST_ROW,
    accumulating_row_tile,
    as_rows,
    empty_contiguous,
    main_grad,
    resident_programs,
    row_tile,
    sum_rows,
    wide_type,
)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool = False) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    Args:
        x: (..., width) of any float dtype.
        weight: (width,) of any float dtype. Where it carries a `main_grad` (fp32), backward adds to that and returns no
            gradient for it.
        round_before_weight: round `x / sqrt(...)` to the dtype of `x` before the product with `weight`, as Llama does.
            Otherwise everything is computed in fp32 (fp64 for fp64 inputs) and rounded once.

    Returns (..., width) in the dtype of `x`.
    """
    _check_width(x, weight)
    if not use_triton(x):
        return _Reference.apply(x, weight, eps, round_before_weight)
    return _apply_rms_norm(x, weight, eps, round_before_weight, main_grad(weight))


def deepnorm_residual(
    x: Tensor, f: Tensor, weight: Tensor, alpha: float, eps: float, *, round_before_weight: bool = False
) -> Tensor:
    """The DeepNorm residual `rms_norm(alpha * x + f)`; `x` and the branch's output `f` are (..., width)."""
    return deepnorm_residual_and_sum(x, f, weight, alpha, eps, round_before_weight=round_before_weight)[0]


def deepnorm_residual_and_sum(
    x: Tensor, f: Tensor, weight: Tensor, alpha: float, eps: float, *, round_before_weight: bool = False
) -> tuple[Tensor, Tensor]:
    """`rms_norm(alpha * x + f)` and the sum itself, in one pass.

    The sum is rounded to the dtype of `x`, and what is normalised is the rounded one. The other arguments are those of
    `rms_norm`.
    """
    _check_width(x, weight)
    if x.shape != f.shape or x.dtype != f.dtype:
        raise ValueError(f"x and f must agree, got {tuple(x.shape)} {x.dtype} and {tuple(f.shape)} {f.dtype}")
    if not use_triton(x):
        total = _scaled_sum(x, f, alpha)
        return _Reference.apply(total, weight, eps, round_before_weight), total
    return _apply_deepnorm_residual(x, f, weight, alpha, eps, round_before_weight, main_grad(weight))


def _scaled_sum(x: Tensor, f: Tensor, alpha: float) -> Tensor:
    """`alpha * x + f`, rounded once."""
    if torch.compiler.is_compiling():  # Inductor makes of `mm + alpha * x` an addmm without alpha (pytorch#167313)
        wide = statistics_dtype(x.dtype)
        return (x.to(wide) * alpha + f.to(wide)).to(x.dtype)
    return torch.add(f, x, alpha=alpha)


def _check_width(x: Tensor, weight: Tensor) -> None:
    if weight.shape != x.shape[-1:] or 0 in (x.ndim, weight.numel()):
        raise ValueError(f"a norm over the last dimension of {tuple(x.shape)} has no weight of {tuple(weight.shape)}")


class _Reference(torch.autograd.Function):
    """The mathematics in PyTorch, a block of rows at a time: each tensor passes through memory once."""

    again_output = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, round_before_weight: bool) -> Tensor:
        y, rstd = _reference_forward(x, weight, eps, round_before_weight)
        ctx.save_for_backward(x, weight, rstd)
        ctx.options = eps, round_before_weight
        return y

    @staticmethod
    def again(ctx: Any) -> Tensor:
        x, weight, _ = ctx.saved_tensors
        return _reference_forward(x, weight, *ctx.options)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """dx = rstd * (g - x_hat * mean(g * x_hat)), g = dy * weight, x_hat = x * rstd; dweight = sum(dy * x_hat)."""
        x, weight, rstd = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, x.shape[-1])
        wide = rstd.dtype
        w = weight.to(wide)
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_x_rows = grad_x.view(rows.shape)
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=x.device)
        block = rows_per_block(rows.shape[0], rows.shape[1], x.device)
        scratch = torch.empty(3, block, rows.shape[1], dtype=wide, device=x.device)
        for part in row_blocks(rows.shape[0], block):
            x_hat, grad, product = scratch[:, : part.stop - part.start]
            torch.mul(rows[part], rstd[part], out=x_hat)
            grad.copy_(grad_rows[part])
            grad_weight += torch.mul(grad, x_hat, out=product).sum(dim=0)
            grad.mul_(w)
            mean = torch.mul(grad, x_hat, out=product).mean(dim=-1, keepdim=True)
            grad_x_rows[part] = grad.addcmul_(x_hat, mean, value=-1).mul_(rstd[part])
        return grad_x, grad_weight.to(weight.dtype), None, None


def _reference_forward(x: Tensor, weight: Tensor, eps: float, round_before_weight: bool) -> tuple[Tensor, Tensor]:
    """y, and 1 / rms of each row, (rows, 1)."""
    rows = x.reshape(-1, x.shape[-1])  # (rows, width)
    wide = statistics_dtype(x.dtype)
    w = weight.to(wide)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    y_rows = y.view(rows.shape)
    rstd = torch.empty(rows.shape[0], 1, dtype=wide, device=x.device)
    block = rows_per_block(rows.shape[0], rows.shape[1], x.device)
    scratch = torch.empty(2, block, rows.shape[1], dtype=wide, device=x.device)
    for part in row_blocks(rows.shape[0], block):
        x_wide, square = scratch[:, : part.stop - part.start]
        x_wide.copy_(rows[part])
        torch.mul(x_wide, x_wide, out=square)
        rstd[part] = square.mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        x_wide.mul_(rstd[part])
        if round_before_weight:
            x_wide.copy_(x_wide.to(x.dtype))
        y_rows[part] = x_wide.mul_(w)
    return y, rstd


class _RMSNorm(torch.autograd.Function):
    again_output = 0

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, round_before_weight: bool, into: Tensor | None
    ) -> Tensor:
        y, rstd = _forward_operator(x, weight, eps, round_before_weight)
        ctx.save_for_backward(x, weight, rstd)
        ctx.options, ctx.into = (eps, round_before_weight), into
        return y

    @staticmethod
    def again(ctx: Any) -> Tensor:
        x, weight, _ = ctx.saved_tensors
        return _forward_operator(x, weight, *ctx.options)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        grad_x, partial = _backward_operator(grad_y, x, weight, rstd)
        return grad_x, sum_rows(partial, weight.dtype, ctx.into), None, None, None


class _DeepNormResidual(torch.autograd.Function):
    again_output = 0

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        f: Tensor,
        weight: Tensor,
        alpha: float,
        eps: float,
        round_before_weight: bool,
        into: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        y, total, rstd = _residual_forward_operator(x, f, weight, alpha, eps, round_before_weight)
        ctx.save_for_backward(total, weight, rstd)
        ctx.alpha, ctx.options, ctx.into = alpha, (eps, round_before_weight), into
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    def again(ctx: Any) -> Tensor:
        """The norm alone, of the sum as it was rounded: the same arithmetic on the same tile of a row."""
        total, weight, _ = ctx.saved_tensors
        return _forward_operator(total, weight, *ctx.options)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, rstd = ctx.saved_tensors
        if grad_y is None:
            grad_y = torch.zeros_like(total)
        grad_x, grad_f, partial = _residual_backward_operator(grad_y, grad_total, total, weight, rstd, ctx.alpha)
        return grad_x, grad_f, sum_rows(partial, weight.dtype, ctx.into), None, None, None, None


_apply_rms_norm = differentiable(_RMSNorm)
_apply_deepnorm_residual = differentiable(_DeepNormResidual)


def _run_forward(x: Tensor, weight: Tensor, eps: float, round_before_weight: bool) -> tuple[Tensor, Tensor]:
    y, rstd = _allocate_forward(x, weight, eps, round_before_weight)
    _launch_forward(x, None, weight, y, None, rstd, 1.0, eps, round_before_weight)
    return y, rstd


def _allocate_forward(x: Tensor, weight: Tensor, eps: float, round_before_weight: bool) -> tuple[Tensor, Tensor]:
    return empty_contiguous(x), x.new_empty(x.numel() // x.shape[-1], dtype=statistics_dtype(x.dtype))


def _run_residual_forward(
    x: Tensor, f: Tensor, weight: Tensor, alpha: float, eps: float, round_before_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, total, rstd = _allocate_residual_forward(x, f, weight, alpha, eps, round_before_weight)
    _launch_forward(x, f, weight, y, total, rstd, alpha, eps, round_before_weight)
    return y, total, rstd


def _allocate_residual_forward(
    x: Tensor, f: Tensor, weight: Tensor, alpha: float, eps: float, round_before_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd = _allocate_forward(x, weight, eps, round_before_weight)
    return y, torch.empty_like(y), rstd


def _launch_forward(
    x: Tensor,
    f: Tensor | None,
    weight: Tensor,
    y: Tensor,
    total: Tensor | None,
    rstd: Tensor,
    alpha: float,
    eps: float,
    round_before_weight: bool,
) -> None:
    x_rows = as_rows(x)
    f_rows = x_rows if f is None else as_rows(f)
    if total is None:
        total = y
    program = _forward_program(x.shape[-1], x.dtype, alpha, eps, f is not None, round_before_weight)
    rows, strides = x_rows.shape[0], (x_rows.stride(0), f_rows.stride(0))
    program((rows, 1, 1), x_rows, f_rows, weight.contiguous(), y, total, rstd, *strides)


@cache
def _forward_program(
    width: int, dtype: torch.dtype, alpha: float, eps: float, has_residual: bool, round_before_weight: bool
) -> Program:
    tile = row_tile(width)
    return Program(
        rms_norm_forward_kernel if width <= WIDEST_ROW else rms_norm_wide_forward_kernel,
        tile.num_warps,
        WIDTH=width,
        ALPHA=alpha,
        EPS=eps,
        HAS_RESIDUAL=has_residual,
        ROUND_BEFORE_WEIGHT=round_before_weight,
        WIDE=wide_type(dtype),
        BLOCK=tile.block,
    )


def _run_backward(grad_y: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, partial = _allocate_backward(grad_y, x, weight, rstd)
    _launch_backward(grad_y, None, x, weight, rstd, grad_x, None, partial, 1.0)
    return grad_x, partial


def _allocate_backward(grad_y: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `x`, and rows of partial sums of the weight's gradient."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, width = rstd.numel(), x.shape[-1]
    if width > WIDEST_ACCUMULATING_ROW:
        programs = cdiv(rows, WIDE_ROWS)
    else:
        programs = resident_programs(rows, accumulating_row_tile(width), x.device, ACCUMULATING_WARPS)
    return grad_x, torch.empty(programs, width, dtype=rstd.dtype, device=x.device)


def _run_residual_backward(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_f, partial = _allocate_residual_backward(grad_y, grad_total, total, weight, rstd, alpha)
    _launch_backward(grad_y, grad_total, total, weight, rstd, grad_f, grad_x, partial, alpha)
    return grad_x, grad_f, partial


def _allocate_residual_backward(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_f, partial = _allocate_backward(grad_y, total, weight, rstd)
    return torch.empty_like(grad_f), grad_f, partial


def _launch_backward(
    grad_y: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    grad_sum: Tensor,
    grad_x: Tensor | None,
    partial: Tensor,
    alpha: float,
) -> None:
    """Write `grad_sum`, the gradient of what was normalised, and with a residual `grad_x = alpha * grad_sum`."""
    grad_rows, x_rows = as_rows(grad_y), as_rows(x)
    grad_total_rows = grad_rows if grad_total is None else as_rows(grad_total)
    weight = weight.contiguous()
    rows, width = x_rows.shape
    tensors = (
        grad_rows,
        grad_total_rows,
        x_rows,
        weight,
        rstd,
        grad_sum,
        grad_sum if grad_x is None else grad_x,
        partial,
    )
    strides = (grad_rows.stride(0), grad_total_rows.stride(0), x_rows.stride(0))
    flags = (width, x.dtype, alpha, grad_x is not None, grad_total is not None)
    programs = partial.shape[0]
    if width <= WIDEST_ACCUMULATING_ROW:
        _backward_program(*flags)((programs, 1, 1), *tensors, *strides, rows)
        return
    dots = torch.empty_like(rstd)
    _wide_dot_program(width, x.dtype)(
        (rows, 1, 1), grad_rows, x_rows, weight, rstd, dots, grad_rows.stride(0), x_rows.stride(0)
    )
    grid = (cdiv(width, TILE), programs, 1)
    _wide_backward_program(*flags, WIDE_ROWS)(grid, *tensors, dots, *strides, rows)


@cache
def _backward_program(
    width: int, dtype: torch.dtype, alpha: float, has_residual: bool, has_grad_total: bool
) -> Program:
    tile = accumulating_row_tile(width)
    return Program(
        rms_norm_backward_kernel,
        tile.num_warps,
        WIDTH=width,
        ALPHA=alpha,
        HAS_RESIDUAL=has_residual,
        HAS_GRAD_TOTAL=has_grad_total,
        WIDE=wide_type(dtype),
        BLOCK=tile.block,
    )


@cache
def _wide_dot_program(width: int, dtype: torch.dtype) -> Program:
    return Program(rms_norm_wide_dot_kernel, WIDTH=width, WIDE=wide_type(dtype), BLOCK=TILE)


@cache
def _wide_backward_program(
    width: int, dtype: torch.dtype, alpha: float, has_residual: bool, has_grad_total: bool, rows: int
) -> Program:
    return Program(
        rms_norm_wide_backward_kernel,
        WIDTH=width,
        ALPHA=alpha,
        HAS_RESIDUAL=has_residual,
        HAS_GRAD_TOTAL=has_grad_total,
        WIDE=wide_type(dtype),
        ROWS=rows,
        BLOCK=TILE,
    )


_forward_operator = Operator(
    "rms_norm",
    "(Tensor x, Tensor weight, float eps, bool round_before_weight) -> (Tensor, Tensor)",
    _run_forward,
    _allocate_forward,
)
_residual_forward_operator = Operator(
    "deepnorm_residual",
    "(Tensor x, Tensor f, Tensor weight, float alpha, float eps, bool round_before_weight) -> (Tensor, Tensor, Tensor)",
    _run_residual_forward,
    _allocate_residual_forward,
)
_backward_operator = Operator(
    "rms_norm_backward",
    "(Tensor grad_y, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)
_residual_backward_operator = Operator(
    "deepnorm_residual_backward",
    "(Tensor grad_y, Tensor? grad_total, Tensor total, Tensor weight, Tensor rstd, float alpha) "
    "-> (Tensor, Tensor, Tensor)",
    _run_residual_backward,
    _allocate_residual_backward,
)
