"""Rotary position embedding (arXiv 2104.09864, section 3.2.2) of the queries and keys of a packed projection.

Bytes an element in bf16: forward reads and writes the queries and keys where they lie, 4, and leaves the values alone;
backward reads the three gradients and writes the packed one, 4. Memory bandwidth bounds both. A token's cosines and
sines are read once for all heads of a program; the table, 1 MB for 2,048 positions of 128 channels, stays in the L2
cache.

One kernel does both, a launch each: it reads queries, keys and values wherever they lie, writes them one after the
other, and turns the first two. Forward writes over what it reads; backward turns by the opposite angle and copies the
values.
"""

from functools import cache, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, cdiv, next_power_of_2
from mindllm_engine.kernels.operator import Operator, differentiable
from mindllm_engine.kernels.reference import row_blocks, rows_per_block, statistics_dtype
from mindllm_engine.kernels.rows import wide_type

# Elements of a program's tile of heads: 64 heads of 128.
TILE_ELEMENTS = 8192
# A thread's share of them: four 128-bit loads of bf16.
THREAD_ELEMENTS = 32


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


def document_positions(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """The place of each packed token in its document: (tokens,) int32.

    `cu_seqlens` (documents + 1,) int32 are the offsets of the documents, from 0; tokens behind the last one count on
    from there. The host does not wait for the device. Call it once a micro-batch, not once a layer.
    """
    index = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, index, right=True) - 1
    return index - cu_seqlens[document].to(torch.int32)


def rotary(
    qkv: Tensor, positions: Tensor, table: Tensor, *, kv_heads: int | None = None, interleaved: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate the queries and keys of a packed projection by their positions, in place.

    Args:
        qkv: (tokens, heads + 2 * kv_heads, head_dim): queries, keys, values. It is consumed: the results are views of
            it, and it must not be used again (autograd notices an operator that has saved it for its backward). It is
            left as it is, and queries and keys get memory of their own, where it is not contiguous, where it is a leaf
            that requires a gradient, and in compiled graphs.
        positions: (tokens,) integers below max_len; on a GPU that is not checked. See `document_positions`.
        table: (max_len, head_dim) from `rotary_table`.
        kv_heads: heads of keys and of values; by default as many as queries.
        interleaved: pair channels 2i and 2i + 1 (as GPT-J), not i and i + head_dim / 2 (as GPT-NeoX and Llama).

    Returns q (tokens, heads, head_dim), k and v (tokens, kv_heads, head_dim). Computed in fp32 (fp64 for fp64 inputs),
    rounded once. Raises ValueError for shapes that do not agree.
    """
    if qkv.ndim != 3 or qkv.shape[2] % 2:
        raise ValueError(f"a packed projection is (tokens, heads, even head_dim), got {tuple(qkv.shape)}")
    tokens, packed_heads, head_dim = qkv.shape
    if kv_heads is None and packed_heads % 3:
        raise ValueError(f"{packed_heads} heads are not as many queries as keys and values: give kv_heads")
    kv_heads = packed_heads // 3 if kv_heads is None else kv_heads
    if not 0 < 2 * kv_heads < packed_heads:
        raise ValueError(f"{packed_heads} heads do not hold queries and {kv_heads} heads each of keys and values")
    if positions.shape != (tokens,) or positions.is_floating_point():
        raise ValueError(f"{tokens} tokens need as many integers, got {tuple(positions.shape)} {positions.dtype}")
    if table.ndim != 2 or table.shape[1] != head_dim:
        raise ValueError(f"heads of {head_dim} channels have no table of {tuple(table.shape)}")
    return _apply_rotary(qkv, positions, table, kv_heads, interleaved, _may_be_overwritten(qkv))


def _may_be_overwritten(qkv: Tensor) -> bool:
    """Torch's own rule for leaves and their views; compiled graphs would have to undo an alias."""
    if torch.compiler.is_compiling() or not qkv.is_contiguous():
        return False
    origin = qkv if qkv._base is None else qkv._base
    return not (origin.is_leaf and origin.requires_grad)


class _Rotary(torch.autograd.Function):
    """Gives three views of memory that it has changed.

    `mark_dirty` does not allow that for a `qkv` that is itself a view, so the change is told to autograd by hand. The
    views belong to one node with several outputs: writing into them raises an error.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, positions: Tensor, table: Tensor, kv_heads: int, interleaved: bool, in_place: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads, rotated_heads = qkv.shape[1] - 2 * kv_heads, qkv.shape[1] - kv_heads
        if in_place:
            q, k = qkv[:, :heads], qkv[:, heads:rotated_heads]
            _rotate(q, k, None, positions, table, qkv, interleaved, direction=1)
            if not qkv.is_inference():
                increment_version(qkv)
        rotated = qkv if in_place else _forward_operator(qkv, positions, table, kv_heads, interleaved)
        ctx.save_for_backward(positions, table)
        ctx.interleaved = interleaved
        return rotated[:, :heads], rotated[:, heads:rotated_heads], qkv[:, rotated_heads:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        positions, table = ctx.saved_tensors
        grad_qkv = _backward_operator(grad_q, grad_k, grad_v, positions, table, ctx.interleaved)
        return grad_qkv, None, None, None, None, None


_apply_rotary = differentiable(_Rotary)


def _run_forward(qkv: Tensor, positions: Tensor, table: Tensor, kv_heads: int, interleaved: bool) -> Tensor:
    out = _allocate_forward(qkv, positions, table, kv_heads, interleaved)
    heads, rotated_heads = qkv.shape[1] - 2 * kv_heads, qkv.shape[1] - kv_heads
    q, k = qkv[:, :heads], qkv[:, heads:rotated_heads]
    _rotate(q, k, None, positions, table, out, interleaved, direction=1)
    return out


def _allocate_forward(qkv: Tensor, positions: Tensor, table: Tensor, kv_heads: int, interleaved: bool) -> Tensor:
    """Queries and keys alone: the values stay where they are."""
    tokens, packed_heads, head_dim = qkv.shape
    return torch.empty(tokens, packed_heads - kv_heads, head_dim, dtype=qkv.dtype, device=qkv.device)


def _run_backward(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, positions: Tensor, table: Tensor, interleaved: bool
) -> Tensor:
    grad_qkv = _allocate_backward(grad_q, grad_k, grad_v, positions, table, interleaved)
    _rotate(grad_q, grad_k, grad_v, positions, table, grad_qkv, interleaved, direction=-1)
    return grad_qkv


def _allocate_backward(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, positions: Tensor, table: Tensor, interleaved: bool
) -> Tensor:
    tokens, heads, head_dim = grad_q.shape
    return torch.empty(tokens, heads + 2 * grad_k.shape[1], head_dim, dtype=grad_q.dtype, device=grad_q.device)


def _rotate(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    positions: Tensor,
    table: Tensor,
    out: Tensor,
    interleaved: bool,
    direction: int,
) -> None:
    """Write `q` and `k`, rotated (direction 1) or rotated back (-1), and `v` as it is, to the heads of `out` in order.

    All are (tokens, heads, head_dim). `out` is contiguous, may be what `q` and `k` are views of, and may hold more
    heads, which stay as they are.
    """
    rotate = _launch if use_triton(q) else _rotate_by_reference
    rotate(q, k, v, positions, table, out, interleaved, direction)


def _rotate_by_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    positions: Tensor,
    table: Tensor,
    out: Tensor,
    interleaved: bool,
    direction: int,
) -> None:
    """(x1 cos - x2 sin, x2 cos + x1 sin) for direction 1, a block of tokens at a time."""
    tokens, heads, head_dim = q.shape
    rotated_heads = heads + k.shape[1]
    block = rows_per_block(tokens, rotated_heads * head_dim, q.device)
    scratch = torch.empty(2, block, rotated_heads, head_dim, dtype=statistics_dtype(q.dtype), device=q.device)
    for part in row_blocks(tokens, block):
        cos, sin = table[positions[part]].unsqueeze(1).chunk(2, dim=-1)  # (block, 1, head_dim / 2) each
        x, y = scratch[:, : part.stop - part.start]
        x[:, :heads] = q[part]
        x[:, heads:] = k[part]
        x1, x2 = _channel_pairs(x, interleaved)
        y1, y2 = _channel_pairs(y, interleaved)
        torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=-direction)
        torch.mul(x2, cos, out=y2).addcmul_(x1, sin, value=direction)
        out[part, :rotated_heads] = y
        if v is not None:
            out[part, rotated_heads:] = v[part]


def _channel_pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, ...]:
    """The first and the second channel of each pair, views (..., head_dim / 2)."""
    return x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, dim=-1)


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    positions: Tensor,
    table: Tensor,
    out: Tensor,
    interleaved: bool,
    direction: int,
) -> None:
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    written_heads = heads + kv_heads if v is None else heads + 2 * kv_heads
    q, k, v = (_with_adjacent_channels(x) for x in (q, k, k if v is None else v))
    block_half = next_power_of_2(head_dim // 2)
    block_heads = min(next_power_of_2(written_heads), TILE_ELEMENTS // (2 * block_half))
    # In place, no element may lie with two threads: a tile has a pair of channels for each thread of a warp.
    block_heads = max(1, 32 // block_half, block_heads)
    shape = (heads, kv_heads, written_heads, out.shape[1], head_dim, block_heads, block_half)
    program = _program(*shape, direction, interleaved, q.dtype)
    blocks = cdiv(written_heads, block_heads)
    strides = (q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1))
    program((tokens * blocks, 1, 1), q, k, v, out, positions.contiguous(), table.contiguous(), *strides)


@cache
def _program(
    heads: int,
    kv_heads: int,
    written_heads: int,
    out_heads: int,
    head_dim: int,
    block_heads: int,
    block_half: int,
    direction: int,
    interleaved: bool,
    dtype: torch.dtype,
) -> Program:
    return Program(
        _rotary_kernel,
        num_warps=max(1, min(8, 2 * block_heads * block_half // (32 * THREAD_ELEMENTS))),
        HEADS=heads,
        KV_HEADS=kv_heads,
        WRITTEN_HEADS=written_heads,
        OUT_HEADS=out_heads,
        HEAD_DIM=head_dim,
        DIRECTION=direction,
        INTERLEAVED=interleaved,
        WIDE=wide_type(dtype),
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=block_half,
    )


def _with_adjacent_channels(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


@triton.jit
def _rotary_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    positions_ptr,
    table_ptr,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WRITTEN_HEADS: tl.constexpr,
    OUT_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIRECTION: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """A token's heads a program, or BLOCK_HEADS of them; heads are numbered as in `out`."""
    BLOCKS: tl.constexpr = (WRITTEN_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    HALF: tl.constexpr = HEAD_DIM // 2
    token = (tl.program_id(0) // BLOCKS).to(tl.int64)
    position = tl.load(positions_ptr + token).to(tl.int64)
    heads = (tl.program_id(0) % BLOCKS * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
    is_rotated = heads < HEADS + KV_HEADS
    keys = k_ptr + token * k_token_stride + (heads - HEADS) * k_head_stride
    if WRITTEN_HEADS > HEADS + KV_HEADS:
        values = v_ptr + token * v_token_stride + (heads - HEADS - KV_HEADS) * v_head_stride
        keys = tl.where(is_rotated, keys, values)
    rows = tl.where(heads < HEADS, q_ptr + token * q_token_stride + heads * q_head_stride, keys)[:, None]
    out_rows = out_ptr + (token * OUT_HEADS + heads[:, None]) * HEAD_DIM

    pairs = tl.arange(0, BLOCK_HALF)
    columns = tl.arange(0, 2 * BLOCK_HALF)[None, :] if INTERLEAVED else pairs[None, :]
    inside = (heads[:, None] < WRITTEN_HEADS) & (columns < (HEAD_DIM if INTERLEAVED else HALF))
    if INTERLEAVED:
        x = tl.load(rows + columns, mask=inside, other=0.0)
        x1, x2 = tl.split(tl.reshape(x, (BLOCK_HEADS, BLOCK_HALF, 2)))
    else:
        x1 = tl.load(rows + columns, mask=inside, other=0.0)
        x2 = tl.load(rows + HALF + columns, mask=inside, other=0.0)
    x1, x2 = x1.to(WIDE), x2.to(WIDE)
    # After the heads' loads, which then do not wait for the position.
    angles_ptr = table_ptr + position * HEAD_DIM + pairs
    cos = tl.load(angles_ptr, mask=pairs < HALF, other=0.0).to(WIDE)[None, :]
    sin = tl.load(angles_ptr + HALF, mask=pairs < HALF, other=0.0).to(WIDE)[None, :] * DIRECTION
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    if WRITTEN_HEADS > HEADS + KV_HEADS:
        y1, y2 = tl.where(is_rotated[:, None], y1, x1), tl.where(is_rotated[:, None], y2, x2)
    y1, y2 = y1.to(out_ptr.dtype.element_ty), y2.to(out_ptr.dtype.element_ty)
    if INTERLEAVED:
        tl.store(out_rows + columns, tl.reshape(tl.join(y1, y2), (BLOCK_HEADS, 2 * BLOCK_HALF)), mask=inside)
    else:
        tl.store(out_rows + columns, y1, mask=inside)
        tl.store(out_rows + HALF + columns, y2, mask=inside)


_forward_operator = Operator(
    "rotary",
    "(Tensor qkv, Tensor positions, Tensor table, int kv_heads, bool interleaved) -> Tensor",
    _run_forward,
    _allocate_forward,
)
_backward_operator = Operator(
    "rotary_backward",
    "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor positions, Tensor table, bool interleaved) -> Tensor",
    _run_backward,
    _allocate_backward,
)
