"""Cross-entropy of given logits, with an optional z-loss (PaLM, arXiv 2204.02311, section 5).

Bytes a logit in bf16: the forward reads it once, 2; the backward reads it and writes its gradient, 4. Memory bandwidth
bounds both. The exponentials come close behind: a multiprocessor of an H200 makes 16 a cycle and is given 9 bf16 logits
at 4.3 TB/s and 1.8 GHz; everything else about a logit is five or six instructions, of which 128 are issued a cycle.

A row is a program. It is read in tiles; each thread keeps the largest logit and the sum of exponentials of its own
columns, so that no thread waits for another before the end of the row. Exponentials are taken in base 2. Gradients are
written in a second pass over the row, last tile first, since what was read last is what the L2 cache still holds: the
rows of 125,700 bf16 logits under way on 132 multiprocessors are 33 MB, of 50 MB of cache.
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, next_power_of_2
from mindllm_engine.kernels.operator import Operator, differentiable
from mindllm_engine.kernels.reference import statistics_dtype
from mindllm_engine.kernels.rows import as_rows, wide_type

# Columns that a program takes at a time: four 128-bit loads of bf16 in each of 1,024 threads, 64 KB on the way to each
# multiprocessor. That many threads of more than 32 registers leave room for one program a multiprocessor, whose row
# then stays in the L2 cache. With 16 elements a thread the compiler takes 32 registers, and two rows compete.
BLOCK = 32768
ELEMENTS_PER_THREAD = 32
# Below every logit but finite, so that exp(-inf - LOWEST) is 0 and not NaN.
LOWEST = tl.constexpr(-3.0e38)
TARGET_DTYPES = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))
LOG2E = tl.constexpr(1 / math.log(2))
LN2 = tl.constexpr(math.log(2))


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100, *, z_loss: float = 0.0) -> Tensor:
    """Losses of single tokens: `logsumexp(logits) - logits[target] + z_loss * logsumexp(logits)^2`.

    Args:
        logits: (T, V) of any float dtype. They are not copied to a wider one; all arithmetic is in fp32 (fp64).
        targets: (T,) integers in [0, V), or `ignore_index` where there is no loss. Another number is an error: the
            kernels make that token's loss and gradient NaN, the reference raises IndexError.
        z_loss: weight of the squared logarithm of the softmax's denominator (PaLM, arXiv 2204.02311, section 5).

    Returns (T,) in fp32 (fp64 for fp64 logits), 0 where the target is `ignore_index`. Where the logits come from a
    hidden state and a projection, `linear_cross_entropy` gives the same without holding them.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy needs logits (T, V) and targets (T,), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    check_targets(targets)
    if not use_triton(logits):
        return _reference(logits, targets, ignore_index, z_loss)
    return _apply_cross_entropy(logits, targets, ignore_index, z_loss)


def check_targets(targets: Tensor) -> None:
    """Raise ValueError for what are no class numbers, such as probabilities."""
    if targets.dtype not in TARGET_DTYPES:
        raise ValueError(f"targets must be integers, got {targets.dtype}")


def _reference(logits: Tensor, targets: Tensor, ignore_index: int, z_loss: float) -> Tensor:
    wide = logits.to(statistics_dtype(logits.dtype))
    losses = F.cross_entropy(wide, targets, ignore_index=ignore_index, reduction="none")
    if z_loss == 0:
        return losses
    squares = torch.logsumexp(wide, dim=1).square()
    return losses + z_loss * squares.masked_fill(targets == ignore_index, 0)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, z_loss: float) -> Tensor:
        losses, peaks, totals = _forward_operator(logits, targets, ignore_index, z_loss)
        ctx.save_for_backward(logits, targets, peaks, totals)
        ctx.ignore_index, ctx.z_loss = ignore_index, z_loss
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _backward_operator(upstream, *ctx.saved_tensors, ctx.ignore_index, ctx.z_loss), None, None, None


_apply_cross_entropy = differentiable(_CrossEntropy)


def _run_forward(logits: Tensor, targets: Tensor, ignore_index: int, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    losses, peaks, totals = _allocate_forward(logits, targets, ignore_index, z_loss)
    rows = as_rows(logits)
    launch_losses(rows, rows.shape[1], targets, losses, ignore_index, z_loss, statistics=(peaks, totals))
    return losses, peaks, totals


def _allocate_forward(
    logits: Tensor, targets: Tensor, ignore_index: int, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, the largest logits of the rows, and the sums of exponentials beside it."""
    losses, peaks, totals = (
        torch.empty(logits.shape[0], dtype=statistics_dtype(logits.dtype), device=logits.device) for _ in range(3)
    )
    return losses, peaks, totals


def launch_losses(
    logits: Tensor,
    vocab: int,
    targets: Tensor,
    losses: Tensor,
    ignore_index: int,
    z_loss: float,
    *,
    statistics: tuple[Tensor, Tensor] | None = None,
    write_gradients: bool = False,
) -> None:
    """Write `losses` (rows,) of `logits` (rows, columns), whose first `vocab` columns count.

    The other columns are padding that may hold anything. `write_gradients` overwrites the logits with their gradients
    for an upstream gradient of 1; `statistics` are the rows' largest logits and sums of exponentials, to be written.
    """
    peaks, totals = statistics or (losses, losses)
    program = _losses_program(
        _tile(vocab),
        vocab,
        logits.shape[1],
        logits.stride(0),
        logits.dtype,
        ignore_index,
        z_loss,
        statistics is not None,
        write_gradients,
    )
    program((logits.shape[0], 1, 1), logits, targets.contiguous(), losses, peaks, totals)


@cache
def _losses_program(
    tile: int,
    vocab: int,
    columns: int,
    stride: int,
    dtype: torch.dtype,
    ignore_index: int,
    z_loss: float,
    save_statistics: bool,
    write_gradients: bool,
) -> Program:
    return Program(
        _cross_entropy_losses_kernel,
        _warps(tile),
        IGNORE_INDEX=ignore_index,
        Z_LOSS=z_loss,
        VOCAB=vocab,
        COLUMNS=columns,
        STRIDE=stride,
        SAVE_STATISTICS=save_statistics,
        WRITE_GRADIENTS=write_gradients,
        WIDE=wide_type(dtype),
        VECTOR=_vector(dtype),
        BLOCK=tile,
    )


def _tile(vocab: int) -> int:
    return min(BLOCK, max(ELEMENTS_PER_THREAD, next_power_of_2(vocab)))


def _warps(tile: int) -> int:
    return max(1, tile // (32 * ELEMENTS_PER_THREAD))


def _vector(dtype: torch.dtype) -> int:
    """Elements of a 128-bit access."""
    return 16 // dtype.itemsize


@triton.jit
def _tile_columns(first, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """Column numbers (BLOCK / VECTOR, VECTOR): the neighbours in a row of this tile are one thread's."""
    return first + tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


@triton.jit
def _load_tile(ptr, columns, VOCAB: tl.constexpr, COLUMNS: tl.constexpr, PARTIAL: tl.constexpr, WIDE: tl.constexpr):
    """A tile of logits, -inf beyond the vocabulary. Padding is read with the rest, in whole vectors, and dropped."""
    if PARTIAL:
        x = tl.load(ptr + columns, mask=columns < COLUMNS, other=0.0).to(WIDE)
        return tl.where(columns < VOCAB, x, float("-inf"))
    return tl.load(ptr + columns).to(WIDE)


@triton.jit
def _power(x, peak):
    """2^(x * log2(e) - peak) for the logits `x`, exact for any `peak`: one fused multiply and add, one exponential."""
    return tl.exp2(tl.fma(x, tl.full(x.shape, LOG2E, x.dtype), -peak))


@triton.jit
def _add_tile(peaks, totals, x):
    """The peaks and sums of powers of each thread's columns, with another tile. A peak is a multiple of log2(e)."""
    higher = tl.maximum(peaks, tl.max(x, axis=1) * LOG2E)
    return higher, totals * tl.exp2(peaks - higher) + tl.sum(_power(x, higher[:, None]), axis=1)


@triton.jit
def _row_statistics(
    ptr, VOCAB: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr
):
    """The peak of a row, its largest logit times log2(e), and its sum of 2^(logit * log2(e) - peak), in one pass."""
    peaks = tl.full((BLOCK // VECTOR,), LOWEST, dtype=WIDE)
    totals = tl.zeros((BLOCK // VECTOR,), dtype=WIDE)
    for index in range(VOCAB // BLOCK):
        x = _load_tile(ptr, _tile_columns(index * BLOCK, VECTOR, BLOCK), VOCAB, COLUMNS, False, WIDE)
        peaks, totals = _add_tile(peaks, totals, x)
    if VOCAB % BLOCK != 0:
        x = _load_tile(ptr, _tile_columns(VOCAB // BLOCK * BLOCK, VECTOR, BLOCK), VOCAB, COLUMNS, True, WIDE)
        peaks, totals = _add_tile(peaks, totals, x)
    peak = tl.max(peaks, axis=0)
    return peak, tl.sum(totals * tl.exp2(peaks - peak), axis=0)


@triton.jit
def _store_gradients(out_ptr, x, columns, target, peak, scale, one, COLUMNS: tl.constexpr, PARTIAL: tl.constexpr):
    grad = _power(x, peak) * scale
    grad = tl.where(columns == target, grad - one, grad).to(out_ptr.dtype.element_ty)
    if PARTIAL:
        tl.store(out_ptr + columns, grad, mask=columns < COLUMNS)
    else:
        tl.store(out_ptr + columns, grad)


@triton.jit
def _write_gradients(
    ptr,
    out_ptr,
    target,
    peak,
    total,
    factor,
    Z_LOSS: tl.constexpr,
    VOCAB: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """factor * (softmax * (1 + 2 z logsumexp) - onehot) of a row; NaN for a target outside the vocabulary."""
    one = tl.where((target >= 0) & (target < VOCAB), factor, float("nan"))
    scale = one / total
    if Z_LOSS != 0:
        scale *= 1 + 2 * Z_LOSS * LN2 * (peak + tl.log2(total))
    if VOCAB % BLOCK != 0:
        columns = _tile_columns(VOCAB // BLOCK * BLOCK, VECTOR, BLOCK)
        x = _load_tile(ptr, columns, VOCAB, COLUMNS, True, WIDE)
        _store_gradients(out_ptr, x, columns, target, peak, scale, one, COLUMNS, True)
    for index in range(VOCAB // BLOCK):
        columns = _tile_columns((VOCAB // BLOCK - 1 - index) * BLOCK, VECTOR, BLOCK)
        x = _load_tile(ptr, columns, VOCAB, COLUMNS, False, WIDE)
        _store_gradients(out_ptr, x, columns, target, peak, scale, one, COLUMNS, False)


@triton.jit
def _write_zeros(out_ptr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    zeros = tl.zeros((BLOCK // VECTOR, VECTOR), dtype=out_ptr.dtype.element_ty)
    for first in range(0, COLUMNS, BLOCK):
        columns = _tile_columns(first, VECTOR, BLOCK)
        tl.store(out_ptr + columns, zeros, mask=columns < COLUMNS)


@triton.jit
def _cross_entropy_losses_kernel(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    peaks_ptr,
    totals_ptr,
    IGNORE_INDEX: tl.constexpr,
    Z_LOSS: tl.constexpr,
    VOCAB: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr,
    SAVE_STATISTICS: tl.constexpr,
    WRITE_GRADIENTS: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program. Strides are constants: their divisors decide how wide a load may be."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * STRIDE
    target = tl.load(targets_ptr + row)
    if target == IGNORE_INDEX:
        tl.store(losses_ptr + row, 0.0)
        if WRITE_GRADIENTS:
            _write_zeros(logits_ptr, COLUMNS, VECTOR, BLOCK)
    else:
        peak, total = _row_statistics(logits_ptr, VOCAB, COLUMNS, WIDE, VECTOR, BLOCK)
        inside = (target >= 0) & (target < VOCAB)
        chosen = tl.load(logits_ptr + target, mask=inside, other=float("nan")).to(WIDE)  # before it is overwritten
        # The difference of two logits is taken before the change of base, from the largest one itself, which the
        # rounding gives back in bf16 and fp16: it then is exact, however large the logits are.
        center = (peak * LN2).to(logits_ptr.dtype.element_ty).to(WIDE)
        log_total = LN2 * (tl.log2(total) - tl.fma(center, tl.full((), LOG2E, WIDE), -peak))
        loss = log_total - (chosen - center)
        if Z_LOSS != 0:
            loss += Z_LOSS * (center + log_total) * (center + log_total)
        tl.store(losses_ptr + row, loss)
        if SAVE_STATISTICS:
            tl.store(peaks_ptr + row, peak)
            tl.store(totals_ptr + row, total)
        if WRITE_GRADIENTS:
            tl.debug_barrier()  # the thread that overwrites the target's logit is not the one that has read it
            factor = tl.full((), 1.0, dtype=WIDE)
            _write_gradients(
                logits_ptr, logits_ptr, target, peak, total, factor, Z_LOSS, VOCAB, COLUMNS, WIDE, VECTOR, BLOCK
            )


def _run_backward(
    upstream: Tensor,
    logits: Tensor,
    targets: Tensor,
    peaks: Tensor,
    totals: Tensor,
    ignore_index: int,
    z_loss: float,
) -> Tensor:
    grad = _allocate_backward(upstream, logits, targets, peaks, totals, ignore_index, z_loss)
    rows = as_rows(logits)
    program = _backward_program(_tile(rows.shape[1]), rows.shape[1], rows.stride(0), logits.dtype, ignore_index, z_loss)
    grid = (rows.shape[0], 1, 1)
    program(grid, upstream, rows, targets.contiguous(), peaks, totals, grad, upstream.stride(0))
    return grad


def _allocate_backward(
    upstream: Tensor,
    logits: Tensor,
    targets: Tensor,
    peaks: Tensor,
    totals: Tensor,
    ignore_index: int,
    z_loss: float,
) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@cache
def _backward_program(
    tile: int, vocab: int, stride: int, dtype: torch.dtype, ignore_index: int, z_loss: float
) -> Program:
    return Program(
        _cross_entropy_backward_kernel,
        _warps(tile),
        IGNORE_INDEX=ignore_index,
        Z_LOSS=z_loss,
        VOCAB=vocab,
        STRIDE=stride,
        WIDE=wide_type(dtype),
        VECTOR=_vector(dtype),
        BLOCK=tile,
    )


@triton.jit
def _cross_entropy_backward_kernel(
    upstream_ptr,
    logits_ptr,
    targets_ptr,
    peaks_ptr,
    totals_ptr,
    grad_ptr,
    upstream_stride,
    IGNORE_INDEX: tl.constexpr,
    Z_LOSS: tl.constexpr,
    VOCAB: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program. Nothing of a row that is ignored is read: its statistics were never written."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * STRIDE
    grad_ptr += row * VOCAB
    target = tl.load(targets_ptr + row)
    if target == IGNORE_INDEX:
        _write_zeros(grad_ptr, VOCAB, VECTOR, BLOCK)
    else:
        factor = tl.load(upstream_ptr + row * upstream_stride).to(WIDE)
        peak = tl.load(peaks_ptr + row)
        total = tl.load(totals_ptr + row)
        _write_gradients(logits_ptr, grad_ptr, target, peak, total, factor, Z_LOSS, VOCAB, VOCAB, WIDE, VECTOR, BLOCK)


_forward_operator = Operator(
    "cross_entropy",
    "(Tensor logits, Tensor targets, int ignore_index, float z_loss) -> (Tensor, Tensor, Tensor)",
    _run_forward,
    _allocate_forward,
)
_backward_operator = Operator(
    "cross_entropy_backward",
    "(Tensor upstream, Tensor logits, Tensor targets, Tensor peaks, Tensor totals, int ignore_index, float z_loss) "
    "-> Tensor",
    _run_backward,
    _allocate_backward,
)
