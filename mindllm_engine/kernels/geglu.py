"""GeGLU, the gated feed-forward activation `gelu(gate) * up` (arXiv 2002.05202, equation 6)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.reference import row_blocks, rows_per_block, statistics_dtype

# gelu(x) = x / 2 * (1 + tanh(SLOPE * (x + CUBIC * x^3))), the tanh form of arXiv 1606.08415, section 2.
SLOPE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def geglu(gate_up: Tensor, approximate: str = "tanh") -> Tensor:
    """`gelu(gate) * up`, where `gate_up` is (..., 2 * ffn) with the gate first; the result is (..., ffn).

    `approximate` is "tanh" or "none" (the erf form), as in `torch.nn.functional.gelu`. The tanh form is computed in
    fp32 (fp64 for fp64 inputs) and rounded once.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"geglu needs an even last dimension, got {gate_up.shape[-1]}")
    if approximate == "tanh":
        return _GeGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate) * up


class _GeGLU(torch.autograd.Function):
    """Forward reads gate_up (2F a row) and writes F; backward reads 3F and writes 2F, with the tanh computed again."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        rows = gate_up.reshape(-1, gate_up.shape[-1])  # (rows, 2 * ffn)
        ffn = rows.shape[1] // 2
        out = torch.empty(*gate_up.shape[:-1], ffn, dtype=gate_up.dtype, device=gate_up.device)
        out_rows = out.view(-1, ffn)
        block = rows_per_block(rows.shape[0], ffn, rows.device)
        scratch = torch.empty(3, block, ffn, dtype=statistics_dtype(rows.dtype), device=rows.device)
        for part in row_blocks(rows.shape[0], block):
            x, up, tanh = scratch[:, : part.stop - part.start]
            x.copy_(rows[part, :ffn])
            up.copy_(rows[part, ffn:])
            _tanh_of_gate(x, tanh)
            # x/2 * (1 + tanh) * up
            out_rows[part] = torch.addcmul(x, x, tanh, out=tanh).mul_(0.5).mul_(up)
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        """With t = tanh(u): gelu' = (1 + t) / 2 + x/2 * (1 - t^2) * u', and u' = SLOPE * (1 + 3 * CUBIC * x^2)."""
        (gate_up,) = ctx.saved_tensors
        rows = gate_up.reshape(-1, gate_up.shape[-1])
        ffn = rows.shape[1] // 2
        grad_rows = grad_out.reshape(-1, ffn)
        grad_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
        grad_gate_up_rows = grad_gate_up.view(rows.shape)
        block = rows_per_block(rows.shape[0], ffn, rows.device)
        scratch = torch.empty(5, block, ffn, dtype=statistics_dtype(rows.dtype), device=rows.device)
        for part in row_blocks(rows.shape[0], block):
            x, tanh, grad, a, b = scratch[:, : part.stop - part.start]
            x.copy_(rows[part, :ffn])
            grad.copy_(grad_rows[part])
            _tanh_of_gate(x, tanh)
            half = grad.mul_(0.5)  # every term of both gradients has a factor of a half
            torch.addcmul(x, x, tanh, out=a)  # x * (1 + t) = 2 * gelu(x)
            grad_gate_up_rows[part, ffn:] = torch.mul(a, half, out=b)
            # 2 * gelu' = 1 + t + x * (1 - t^2) * u' = (1 + t) * (1 + x * u' * (1 - t))
            torch.mul(x, x, out=a).mul_(3 * CUBIC * SLOPE).add_(SLOPE).mul_(x)  # x * u'
            torch.addcmul(a, a, tanh, value=-1, out=b).add_(1)
            b.addcmul_(b, tanh)
            half.mul_(x.copy_(rows[part, ffn:]))  # x is no longer needed: it holds up
            grad_gate_up_rows[part, :ffn] = b.mul_(half)
        return grad_gate_up


def _tanh_of_gate(x: Tensor, out: Tensor) -> None:
    """out = tanh(SLOPE * (x + CUBIC * x^3)), without a temporary."""
    torch.mul(x, x, out=out)
    torch.addcmul(x, out, x, value=CUBIC, out=out).mul_(SLOPE).tanh_()
