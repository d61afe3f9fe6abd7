"""Causal attention over packed sequences, with a left window and a softmax scale.

The reference takes a sequence's queries in blocks and gives each block only the keys that it can see, so no mask of the
whole pack exists. Probabilities are kept for the backward: at most `QUERY_BLOCK * keys` elements a head and block. On a
two-core CPU with AMX this backward is three times as fast as SDPA's on documents of 60-500 tokens.

Blocks are rounded up to whole `ROW_STEP`s and run on into the rows of the next document, whose probabilities are set to
0: the CPU's matrix library compiles code for each new shape, and documents have every length.
"""

import logging
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from mindllm_engine.kernels.reference import statistics_dtype

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch without it, or built without FlashAttention
    varlen_attn = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

QUERY_BLOCK = 256
# Some 375 compiled products a step of 2,048 tokens become none: 3,300 to 5,200 tokens/s of the demo on a core.
ROW_STEP = 64


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
            query heads j * heads / kv_heads and on).
        cu_seqlens: (sequences + 1,) int32, the offsets of the sequences in `q`, from 0 to `tokens`.
        cu_seqlens_k: The same for `k` and `v` where they hold more tokens than `q` (a KV cache). The mask is aligned
            bottom-right: a sequence's last query sees its last key.
        window: (left, 0): a query at position i sees keys i - left to i; left = -1 is no limit. GPT-Neo's local layers,
            which see 256 keys with their own, are (255, 0).
        scale: Factor of the scores, by default head_dim^(-1/2).

    Returns (tokens, heads, head_dim) in the dtype of `q`. The softmax is taken in fp32 (fp64 for fp64 inputs). With
    bf16 inputs the reference rounds scores and probabilities to bf16, as the GEMMs write them; scores with a scale
    above the default stay in fp32. Raises ValueError for a window that is not causal, heads that do not divide, or a
    sequence with fewer keys than queries.

    On CUDA, bf16 and fp16 inputs go to `torch.nn.attention.varlen.varlen_attn` where torch has it. That path has not
    been run yet: this project's tests run on the CPU.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    has_cache = cu_seqlens_k is not None
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
    offsets_q, offsets_k = cu_seqlens.tolist(), cu_seqlens_k.tolist()
    if (offsets_q[-1], offsets_k[-1]) != (q.shape[0], k.shape[0]):
        raise ValueError(f"offsets end at {offsets_q[-1]} and {offsets_k[-1]}, tokens at {q.shape[0]} and {k.shape[0]}")
    row_step = 1 if has_cache else ROW_STEP
    blocks = list(_query_blocks(offsets_q, offsets_k, window[0], row_step))
    beyond = max([block.queries.stop for block in blocks], default=0) - q.shape[0]
    if beyond > 0:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, beyond)) for x in (q, k, v))
    out = _Attention.apply(q, k, v, blocks, window[0], scale)
    return out[: offsets_q[-1]]


class _Block(NamedTuple):
    """Some consecutive queries of a sequence and the keys that at least one of them sees, both with rows to spare."""

    queries: slice
    keys: slice
    used: int  # how many of the queries are the sequence's; the rest only fill the shape
    clipped: int  # how many of the first query's window lie before the sequence's first key; 0 without a window


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: list[_Block], left: int, scale: float) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        probabilities = []
        # Unscaled scores, as GPT-Neo's, are large: bf16 would round away whole units.
        score_dtype = q.dtype if scale <= q.shape[-1] ** -0.5 else statistics_dtype(q.dtype)
        for block in blocks:
            q_block, k_block, v_block = _heads_first(q[block.queries], k[block.keys], v[block.keys])
            # (heads, queries, keys)
            scores = _scaled_product(q_block.to(score_dtype), k_block.to(score_dtype).mT, scale)
            _mask(scores, left, block.clipped)
            p = torch.softmax(scores, dim=-1, out=scores).to(q.dtype)
            p[:, block.used :] = 0
            out[_used(block)] = torch.bmm(p, v_block).transpose(0, 1)[: block.used]
            probabilities.append(p)
        ctx.blocks, ctx.scale = blocks, scale
        ctx.save_for_backward(q, k, v, *probabilities)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """dv = p^T do, dp = do v^T, ds = p * (dp - sum(p * dp)), dq = scale * ds k, dk = scale * ds^T q."""
        q, k, v, *probabilities = ctx.saved_tensors
        # The keys of a sequence above QUERY_BLOCK are met by several blocks, whose gradients are summed.
        grad_q, grad_k, grad_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        for block, p in zip(ctx.blocks, probabilities, strict=True):
            q_block, grad_block = _heads_first(q[block.queries], grad_out[block.queries])
            k_block, v_block = _heads_first(k[block.keys], v[block.keys])
            grad_v[block.keys] += torch.bmm(p.mT, grad_block).transpose(0, 1)
            grad_p = torch.bmm(grad_block, v_block.mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[_used(block)] = _scaled_product(grad_scores, k_block, ctx.scale).transpose(0, 1)[: block.used]
            grad_k[block.keys] += _scaled_product(grad_scores.mT, q_block, ctx.scale).transpose(0, 1)
        return grad_q, grad_k, grad_v, None, None, None


def _used(block: _Block) -> slice:
    return slice(block.queries.start, block.queries.start + block.used)


def _query_blocks(offsets_q: list[int], offsets_k: list[int], left: int, row_step: int) -> Iterator[_Block]:
    for (start_q, end_q), (start_k, end_k) in zip(_pairs(offsets_q), _pairs(offsets_k), strict=True):
        shift = (end_k - start_k) - (end_q - start_q)  # a query's position among the keys, less its place
        if shift < 0:
            raise ValueError(f"a sequence has {end_q - start_q} queries and only {end_k - start_k} keys")
        for first in range(start_q, end_q, QUERY_BLOCK):
            used = min(QUERY_BLOCK, end_q - first)
            last = first + -(-used // row_step) * row_step
            position = first - start_q + shift
            clipped = max(left - position, 0)
            begin = 0 if left < 0 else max(position - left, 0)
            yield _Block(slice(first, last), slice(start_k + begin, start_k + last - start_q + shift), used, clipped)


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
