"""Rotary position embedding (arXiv 2104.09864, section 3.2.2) in the half-split layout.

Channel i of a head is paired with channel i + head_dim / 2 (as in GPT-NeoX and Llama), not with its neighbour.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.reference import row_blocks, rows_per_block, statistics_dtype


@lru_cache(maxsize=16)
def rotary_table(
    max_len: int, dim: int, base: float, device: torch.device | str | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Cosines and sines of `position * base^(-2i / dim)`: (max_len, dim), cosines in the first half of a row.

    Angles are taken in fp64 and rounded once to `dtype`. The table is cached: do not write into it. `dim` must be even.
    """
    if dim % 2:
        raise ValueError(f"rotary needs an even head dimension, got {dim}")
    # A table made under inference_mode could not be saved for a later backward.
    with torch.inference_mode(False):
        frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)  # (dim / 2,)
        angles = torch.outer(torch.arange(max_len, dtype=torch.float64, device=device), frequencies)
        return torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)


def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin_table: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their positions.

    `q` is (tokens, heads, head_dim), `k` (tokens, kv_heads, head_dim), `positions` (tokens,) integers below the table's
    length, `cos_sin_table` (max_len, head_dim) from `rotary_table`. Computed in fp32 (fp64 for fp64 inputs), rounded
    once.
    """
    cos, sin = cos_sin_table[positions].unsqueeze(1).chunk(2, dim=-1)  # (tokens, 1, head_dim / 2) each
    return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)


class _Rotate(torch.autograd.Function):
    """Reads x and writes y, once; backward is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, direction=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad_y, cos, sin, direction=-1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """(x1 cos - x2 sin, x2 cos + x1 sin) for direction 1, the inverse for -1; `x` is (tokens, heads, head_dim)."""
    tokens, heads, head_dim = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = rows_per_block(tokens, heads * head_dim, x.device)
    scratch = torch.empty(2, block, heads, head_dim, dtype=statistics_dtype(x.dtype), device=x.device)
    for part in row_blocks(tokens, block):
        x_wide, y_wide = scratch[:, : part.stop - part.start]
        x_wide.copy_(x[part])
        x1, x2 = x_wide.chunk(2, dim=-1)
        y1, y2 = y_wide.chunk(2, dim=-1)
        torch.mul(x1, cos[part], out=y1).addcmul_(x2, sin[part], value=-direction)
        torch.mul(x2, cos[part], out=y2).addcmul_(x1, sin[part], value=direction)
        y[part] = y_wide
    return y
