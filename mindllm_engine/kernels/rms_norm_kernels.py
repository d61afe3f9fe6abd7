"""The Triton kernels of RMSNorm and the DeepNorm residual; what they move and how they are launched is in
kernels/rms_norm.py."""

import triton
import triton.language as tl

from mindllm_engine.kernels.rows import load_sum


@triton.jit
def _store_normalised(y_ptr, w_ptr, x, rstd, columns, inside, ROUND_BEFORE_WEIGHT: tl.constexpr, WIDE: tl.constexpr):
    x_hat = x * rstd
    if ROUND_BEFORE_WEIGHT:
        x_hat = x_hat.to(y_ptr.dtype.element_ty).to(WIDE)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(WIDE)
    tl.store(y_ptr + columns, (x_hat * w).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_forward_kernel(
    x_ptr,
    f_ptr,
    w_ptr,
    y_ptr,
    total_ptr,
    rstd_ptr,
    x_stride,
    f_stride,
    WIDTH: tl.constexpr,
    ALPHA: tl.constexpr,
    EPS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = load_sum(
        x_ptr + row * x_stride,
        f_ptr + row * f_stride,
        total_ptr + row * WIDTH,
        columns,
        inside,
        ALPHA,
        HAS_RESIDUAL,
        WIDE,
    )
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + EPS)
    tl.store(rstd_ptr + row, rstd)
    _store_normalised(y_ptr + row * WIDTH, w_ptr, x, rstd, columns, inside, ROUND_BEFORE_WEIGHT, WIDE)


@triton.jit
def rms_norm_wide_forward_kernel(
    x_ptr,
    f_ptr,
    w_ptr,
    y_ptr,
    total_ptr,
    rstd_ptr,
    x_stride,
    f_stride,
    WIDTH: tl.constexpr,
    ALPHA: tl.constexpr,
    EPS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program, in tiles: once for its mean square, once, from the L2 cache, for the output."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    f_ptr += row * f_stride
    total_ptr += row * WIDTH
    y_ptr += row * WIDTH
    squares = tl.zeros((BLOCK,), dtype=WIDE)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = load_sum(x_ptr, f_ptr, total_ptr, columns, columns < WIDTH, ALPHA, HAS_RESIDUAL, WIDE)
        squares += x * x
    rstd = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + EPS)
    tl.store(rstd_ptr + row, rstd)
    # Each thread reads back what it has stored itself.
    source_ptr = total_ptr if HAS_RESIDUAL else x_ptr
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        x = tl.load(source_ptr + columns, mask=inside, other=0.0).to(WIDE)
        _store_normalised(y_ptr, w_ptr, x, rstd, columns, inside, ROUND_BEFORE_WEIGHT, WIDE)


@triton.jit
def _store_gradients(
    grad_total_ptr,
    grad_sum_ptr,
    grad_x_ptr,
    grad,
    columns,
    inside,
    ALPHA: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GRAD_TOTAL: tl.constexpr,
):
    if HAS_GRAD_TOTAL:
        grad += tl.load(grad_total_ptr + columns, mask=inside, other=0.0).to(grad.dtype)
    tl.store(grad_sum_ptr + columns, grad.to(grad_sum_ptr.dtype.element_ty), mask=inside)
    if HAS_RESIDUAL:
        tl.store(grad_x_ptr + columns, (grad * ALPHA).to(grad_x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    grad_y_ptr,
    grad_total_ptr,
    x_ptr,
    w_ptr,
    rstd_ptr,
    grad_sum_ptr,
    grad_x_ptr,
    partial_ptr,
    grad_y_stride,
    grad_total_stride,
    x_stride,
    rows,
    WIDTH: tl.constexpr,
    ALPHA: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GRAD_TOTAL: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every so many-th row a program, one after the other; the sum of dy * x_hat stays in registers."""
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    w = tl.load(w_ptr + columns, mask=inside, other=0.0)
    total = tl.zeros((BLOCK,), dtype=WIDE)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        rstd = tl.load(rstd_ptr + row)
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
        grad_y = tl.load(grad_y_ptr + row * grad_y_stride + columns, mask=inside, other=0.0)
        x_hat = x.to(WIDE) * rstd
        grad = grad_y.to(WIDE)
        total += grad * x_hat
        grad *= w.to(WIDE)
        mean = tl.sum(grad * x_hat, axis=0) / WIDTH
        _store_gradients(
            grad_total_ptr + row * grad_total_stride,
            grad_sum_ptr + row * WIDTH,
            grad_x_ptr + row * WIDTH,
            rstd * (grad - x_hat * mean),
            columns,
            inside,
            ALPHA,
            HAS_RESIDUAL,
            HAS_GRAD_TOTAL,
        )
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * WIDTH + columns, total, mask=inside)


@triton.jit
def rms_norm_wide_dot_kernel(
    grad_y_ptr,
    x_ptr,
    w_ptr,
    rstd_ptr,
    dot_ptr,
    grad_y_stride,
    x_stride,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """mean(dy * weight * x_hat) of a row."""
    row = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + row)
    products = tl.zeros((BLOCK,), dtype=WIDE)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(WIDE)
        grad = tl.load(grad_y_ptr + row * grad_y_stride + columns, mask=inside, other=0.0).to(WIDE)
        products += x * rstd * grad * tl.load(w_ptr + columns, mask=inside, other=0.0).to(WIDE)
    tl.store(dot_ptr + row, tl.sum(products, axis=0) / WIDTH)


@triton.jit
def rms_norm_wide_backward_kernel(
    grad_y_ptr,
    grad_total_ptr,
    x_ptr,
    w_ptr,
    rstd_ptr,
    grad_sum_ptr,
    grad_x_ptr,
    partial_ptr,
    dot_ptr,
    grad_y_stride,
    grad_total_stride,
    x_stride,
    rows,
    WIDTH: tl.constexpr,
    ALPHA: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GRAD_TOTAL: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of columns and ROWS rows a program, with the rows' dot products given."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    group = tl.program_id(1).to(tl.int64)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(WIDE)
    total = tl.zeros((BLOCK,), dtype=WIDE)
    for row in range(group * ROWS, min(group * ROWS + ROWS, rows)):
        rstd = tl.load(rstd_ptr + row)
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
        grad_y = tl.load(grad_y_ptr + row * grad_y_stride + columns, mask=inside, other=0.0).to(WIDE)
        x_hat = x.to(WIDE) * rstd
        total += grad_y * x_hat
        _store_gradients(
            grad_total_ptr + row * grad_total_stride,
            grad_sum_ptr + row * WIDTH,
            grad_x_ptr + row * WIDTH,
            rstd * (grad_y * w - x_hat * tl.load(dot_ptr + row)),
            columns,
            inside,
            ALPHA,
            HAS_RESIDUAL,
            HAS_GRAD_TOTAL,
        )
    tl.store(partial_ptr + group * WIDTH + columns, total, mask=inside)
