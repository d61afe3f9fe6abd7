"""Gated linear units, `a(gate) * up` with a GELU or SiLU for a: the kernels of GeGLU and SwiGLU (arXiv 2002.05202,
equation 6), whose public functions stand in geglu.py and swiglu.py.

Bytes an element of the output in bf16: the forward reads gate and up and writes the output, 6; the backward reads gate,
up and the output's gradient and writes two gradients, 10. Memory bandwidth bounds both: the activation is computed
again in the backward, and nothing but the inputs is kept for it.

`form` names the activation (see activations.py); `parts` are the inputs: one tensor that holds gate and up, or two.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.activations import (
    activate,
    activate_and_derivative,
    refuse_second_backward,
    squash,
    take_over,
    twice_derivative,
)
from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, cdiv, next_power_of_2
from mindllm_engine.kernels.operator import Operator, differentiable
from mindllm_engine.kernels.reference import row_blocks, rows_per_block, statistics_dtype
from mindllm_engine.kernels.rows import as_rows, empty_contiguous, wide_type

# The most columns that a program takes, of one row, and its columns a thread: one 128-bit vector of bf16 from each
# tensor. Of two vectors the compiler loads the second after the arithmetic on the first, and fewer warps are resident.
GATED_BLOCK = 1024
THREAD_COLUMNS = 8


def gated_linear_unit(form: str, overwrite: bool, *parts: Tensor) -> Tensor:
    """The operator behind the public functions, which have checked its arguments and explain them."""
    return _apply(form, overwrite and not torch.compiler.is_compiling(), *parts)


def check_packed(operator: str, gate_up: Tensor) -> None:
    """Raise ValueError for what does not hold a gate and an up of one size."""
    if gate_up.ndim == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"{operator} needs an even last dimension, got the shape {tuple(gate_up.shape)}")


class _GatedLinearUnit(torch.autograd.Function):
    again_output = 0

    @staticmethod
    def forward(ctx: Any, form: str, overwrite: bool, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        ctx.form, ctx.overwrite, ctx.triton = form, overwrite, use_triton(parts[0])
        return _compute(parts, form, ctx.triton)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        return _compute(ctx.saved_tensors, ctx.form, ctx.triton)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.overwrite:
            refuse_second_backward(ctx, "geglu" if ctx.form != "silu" else "swiglu")
        parts = ctx.saved_tensors
        if ctx.triton and not ctx.overwrite:
            return None, None, *_backward_operator(grad_out, parts, ctx.form)
        grads = take_over(ctx, *parts) if ctx.overwrite else _allocate_backward(grad_out, parts, ctx.form)
        compute = _launch_backward if ctx.triton else _reference_backward
        compute(grad_out, *_gate_and_up(parts), *_gate_and_up(grads), ctx.form)
        return None, None, *grads


_apply = differentiable(_GatedLinearUnit)


def _compute(parts: Sequence[Tensor], form: str, triton: bool) -> Tensor:
    if triton:
        return _forward_operator(parts, form)
    out = _allocate_forward(parts, form)
    _reference_forward(*_gate_and_up(parts), out, form)
    return out


def _gate_and_up(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    gate, up = parts[0].chunk(2, dim=-1) if len(parts) == 1 else parts
    return gate, up


def _reference_forward(gate: Tensor, up: Tensor, out: Tensor, form: str) -> None:
    """In PyTorch, a block of rows at a time."""
    ffn = out.shape[-1]
    gate_rows, up_rows, out_rows = (x.reshape(-1, ffn) for x in (gate, up, out))
    block = rows_per_block(out_rows.shape[0], ffn, out.device)
    scratch = torch.empty(3, block, ffn, dtype=statistics_dtype(out.dtype), device=out.device)
    for part in row_blocks(out_rows.shape[0], block):
        x, y, t = scratch[:, : part.stop - part.start]
        x.copy_(gate_rows[part])
        y.copy_(up_rows[part])
        squash(x, form, out=t)
        # x/2 * (1 + t) * up
        out_rows[part] = torch.addcmul(x, x, t, out=t).mul_(0.5).mul_(y)


def _reference_backward(
    grad_out: Tensor, gate: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor, form: str
) -> None:
    """In PyTorch, a block of rows at a time; a block is read before its gradients are written."""
    ffn = gate.shape[-1]
    gate_rows, up_rows, grad_rows = (x.reshape(-1, ffn) for x in (gate, up, grad_out))
    grad_gate_rows, grad_up_rows = (x.view(-1, ffn) for x in (grad_gate, grad_up))
    block = rows_per_block(gate_rows.shape[0], ffn, gate.device)
    scratch = torch.empty(5, block, ffn, dtype=statistics_dtype(gate.dtype), device=gate.device)
    for part in row_blocks(gate_rows.shape[0], block):
        x, t, grad, a, b = scratch[:, : part.stop - part.start]
        x.copy_(gate_rows[part])
        grad.copy_(grad_rows[part])
        squash(x, form, out=t)
        half = grad.mul_(0.5)  # every term of both gradients has a factor of a half
        twice_derivative(x, t, form, scratch=a, out=b)
        torch.addcmul(x, x, t, out=a)  # x * (1 + t) = 2 * a(x)
        x.copy_(up_rows[part])  # x is no longer needed: it holds up
        grad_up_rows[part] = a.mul_(half)
        grad_gate_rows[part] = b.mul_(half.mul_(x))


def _run_forward(parts: Sequence[Tensor], form: str) -> Tensor:
    out = _allocate_forward(parts, form)
    gate, up = (as_rows(x) for x in _gate_and_up(parts))
    program, blocks = _program(_gated_forward_kernel, out.shape[-1], out.dtype, form)
    program((gate.shape[0] * blocks, 1, 1), gate, up, out, gate.stride(0), up.stride(0))
    return out


def _allocate_forward(parts: Sequence[Tensor], form: str) -> Tensor:
    first = parts[0]
    ffn = first.shape[-1] * len(parts) // 2
    return first.new_empty(*first.shape[:-1], ffn)


def _run_backward(grad_out: Tensor, parts: Sequence[Tensor], form: str) -> list[Tensor]:
    grads = _allocate_backward(grad_out, parts, form)
    _launch_backward(grad_out, *_gate_and_up(parts), *_gate_and_up(grads), form)
    return grads


def _allocate_backward(grad_out: Tensor, parts: Sequence[Tensor], form: str) -> list[Tensor]:
    return [empty_contiguous(x) for x in parts]


def _launch_backward(grad_out: Tensor, gate: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor, form: str) -> None:
    tensors = [as_rows(x) for x in (grad_out, gate, up, grad_gate, grad_up)]
    rows, width = tensors[0].shape
    program, blocks = _program(_gated_backward_kernel, width, gate.dtype, form)
    program((rows * blocks, 1, 1), *tensors, *(x.stride(0) for x in tensors))


@cache
def _program(kernel: Any, width: int, dtype: torch.dtype, form: str) -> tuple[Program, int]:
    """The program, and how many of them cover a row."""
    block = min(GATED_BLOCK, max(16, next_power_of_2(width)))
    num_warps = max(1, block // (32 * THREAD_COLUMNS))
    flags = {"FORM": form, "WIDE": wide_type(dtype), "BLOCK": block}
    return Program(kernel, num_warps, WIDTH=width, **flags), cdiv(width, block)


@triton.jit
def _place(WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The program's row, its columns, and which of these exist. Programs follow each other as rows do in memory."""
    blocks: tl.constexpr = tl.cdiv(WIDTH, BLOCK)
    program = tl.program_id(0)
    columns = program % blocks * BLOCK + tl.arange(0, BLOCK)
    return (program // blocks).to(tl.int64), columns, columns < WIDTH


@triton.jit
def _gated_forward_kernel(
    gate_ptr,
    up_ptr,
    out_ptr,
    gate_stride,
    up_stride,
    WIDTH: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, columns, inside = _place(WIDTH, BLOCK)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_stride + columns, mask=inside, other=0.0)
    out = activate(gate.to(WIDE), FORM) * up.to(WIDE)
    tl.store(out_ptr + row * WIDTH + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward_kernel(
    grad_out_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    grad_out_stride,
    gate_stride,
    up_stride,
    grad_gate_stride,
    grad_up_stride,
    WIDTH: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reads all that it reads before it writes: the gradients may lie over gate and up."""
    row, columns, inside = _place(WIDTH, BLOCK)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_stride + columns, mask=inside, other=0.0)
    grad = tl.load(grad_out_ptr + row * grad_out_stride + columns, mask=inside, other=0.0).to(WIDE)
    activation, derivative = activate_and_derivative(gate.to(WIDE), FORM)
    grad_gate = grad * up.to(WIDE) * derivative
    grad_up = grad * activation
    dtype = grad_gate_ptr.dtype.element_ty
    tl.store(grad_gate_ptr + row * grad_gate_stride + columns, grad_gate.to(dtype), mask=inside)
    tl.store(grad_up_ptr + row * grad_up_stride + columns, grad_up.to(dtype), mask=inside)


_forward_operator = Operator(
    "gated_linear_unit", "(Tensor[] parts, str form) -> Tensor", _run_forward, _allocate_forward
)
_backward_operator = Operator(
    "gated_linear_unit_backward",
    "(Tensor grad_out, Tensor[] parts, str form) -> Tensor[]",
    _run_backward,
    _allocate_backward,
)
