"""Packed causal attention in plain PyTorch: what kernels/attention.py runs on the CPU, and in fp32 and fp64.

It takes a sequence's queries in blocks and gives each block only the keys that it can see, so no mask of the whole pack
exists. Probabilities are kept for the backward: at most `QUERY_BLOCK * keys` elements a head and block. On a two-core
CPU with AMX this backward is three times as fast as SDPA's on documents of 60-500 tokens.

Blocks are rounded up to whole `ROW_STEP`s and run on into the rows of the next document, whose probabilities are set to
0: the CPU's matrix library compiles code for each new shape, and documents have every length. Short documents share a
block, in which a query sees its own document alone: a step's time would otherwise go into starting small products.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.reference import statistics_dtype

QUERY_BLOCK = 256
# Some 375 compiled products a step of 2,048 tokens become none: 3,300 to 5,200 tokens/s of the demo on a core.
ROW_STEP = 64
# Documents share a block of at most so many rows: a forward and backward of 1,024 tokens in documents of 17 takes 16 ms
# instead of 52, in documents of 40 13 instead of 22 (4 heads of 64, bf16; 256 rows: 21 and 17).
SHARED_ROWS = 128


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: list[int], offsets_k: list[int], has_cache: bool, left: int, scale: float
) -> Tensor:
    """`softmax(scale * q k^T + causal mask) v` within each packed sequence, for q (tokens, heads, head_dim) and k, v
    (tokens_k, kv_heads, head_dim).

    `offsets` and `offsets_k` end at the tokens of q and of k, and no sequence has fewer keys than queries; `attention`
    has checked that. The softmax is taken in fp32 (fp64 for fp64 inputs). bf16 inputs round scores and probabilities to
    bf16, as the GEMMs write them; scores with a scale above the default stay in fp32.
    """
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    row_step = 1 if has_cache else ROW_STEP  # decoding has one query a forward, and 63 more would cost as much each
    blocks = list(_query_blocks(offsets, offsets_k, left, row_step))
    beyond = max([block.queries.stop for block in blocks], default=0) - q.shape[0]
    if beyond > 0:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, beyond)) for x in (q, k, v))
    out = _Attention.apply(q, k, v, blocks, left, scale)
    return out[: offsets[-1]]


def kept_elements(lengths: Sequence[int], heads: int, kv_heads: int, head_dim: int, left: int) -> int:
    """Elements that `reference_attention` keeps for the backward of packed sequences of these lengths without a cache:
    q, k, v, the output and the probabilities; q, k and v come out of one projection."""
    offsets = [0, *accumulate(lengths)]
    blocks = list(_query_blocks(offsets, offsets, left, ROW_STEP))
    rows = max([offsets[-1], *(block.queries.stop for block in blocks)])
    squares = sum((block.queries.stop - block.queries.start) * (block.keys.stop - block.keys.start) for block in blocks)
    # Repeated keys and values are copies; unless q is one too, it holds the projection's own keys and values.
    beside = 2 * kv_heads * rows * head_dim if kv_heads != heads and rows == offsets[-1] else 0
    return heads * (4 * rows * head_dim + squares) + beside


class _Block(NamedTuple):
    """Some consecutive queries of a sequence and the keys that at least one of them sees, both with rows to spare."""

    queries: slice
    keys: slice
    used: int  # how many of the queries are the sequence's; the rest only fill the shape
    clipped: int  # how many of the first query's window lie before the sequence's first key; 0 without a window
    lengths: tuple[int, ...]  # of the sequences that the block serves: one, or several that are short


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
            if len(block.lengths) > 1:
                mask = _between_sequences(block.lengths).to(scores.device)
                scores[:, : block.used, : block.used].masked_fill_(mask, -math.inf)
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
    """The blocks of a pack, in order."""
    borders = list(zip(offsets_q, offsets_k, strict=True))
    groups = _neighbours(offsets_q) if offsets_q == offsets_k else [(i, i + 1) for i in range(len(borders) - 1)]
    for begin_group, end_group in groups:
        (start_q, start_k), (end_q, end_k) = borders[begin_group], borders[end_group]
        lengths = tuple(end - start for start, end in pairwise(offsets_q[begin_group : end_group + 1]))
        shift = (end_k - start_k) - (end_q - start_q)  # a query's position among the keys, less its place
        for first in range(start_q, end_q, QUERY_BLOCK):
            used = min(QUERY_BLOCK, end_q - first)
            last = first + -(-used // row_step) * row_step
            position = first - start_q + shift
            clipped = max(left - position, 0)
            begin = 0 if left < 0 else max(position - left, 0)
            keys = slice(start_k + begin, start_k + last - start_q + shift)
            yield _Block(slice(first, last), keys, used, clipped, lengths)


def _neighbours(offsets: list[int]) -> Iterator[tuple[int, int]]:
    """The first sequence and the one after the last of each block: as many as `SHARED_ROWS` take, and at least one."""
    first = 0
    for last in range(1, len(offsets)):
        if last == len(offsets) - 1 or offsets[last + 1] - offsets[first] > SHARED_ROWS:
            yield first, last
            first = last


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


@lru_cache(maxsize=64)  # the layers of a micro-batch, one after the other, have the same
def _between_sequences(lengths: tuple[int, ...]) -> Tensor:
    """(rows, rows) bool: where a query and a key are of different sequences."""
    with torch.inference_mode(False):
        sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        return sequence[:, None] != sequence
