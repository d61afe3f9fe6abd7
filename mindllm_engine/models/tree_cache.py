"""Keys and values of texts that begin alike: a pack of sequences, each of which continues one of an earlier pack.

Few-shot questions share their examples, and candidate answers share their question. `evaluation/prefix_scoring.py` cuts
such texts into a tree and runs it pack by pack, so that what is shared goes through the network once.

All sequences of a pack that continue the same one attend to its keys in one product of many rows, and nothing shared
is copied. A sequence's scores against what came before it and against its own tokens lie side by side in one buffer, so
that one softmax goes over both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mindllm_engine.kernels.attention import attention
from mindllm_engine.kernels.reference import statistics_dtype
from mindllm_engine.models.kv_cache import AttentionCache

# Rows of queries that attend at once; more do not make the products faster, and take memory for scores.
QUERY_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive tokens of an earlier pack.

    Attributes:
        cache: the cache of that pack, which kept its keys and values.
        rows: where the tokens lie in the pack.
    """

    cache: "TreeCache"
    rows: slice

    def __len__(self) -> int:
        length: int = self.rows.stop - self.rows.start
        return length

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each (kv_heads, tokens, head_dim)."""
        k, v = self.cache.kept[layer]
        return k[:, self.rows], v[:, self.rows]


Path = tuple[Segment, ...]


class TreeCache(AttentionCache):
    """What the sequences of one forward see: each its path of earlier segments, and its own tokens causally.

    Args:
        lengths: tokens of each sequence in the pack.
        paths: what each continues, from the first token of the text on; sequences of one path object stand together.
        keep: whether the keys and values of this pack will be continued in turn.

    Attributes:
        kept: of each layer, keys and values (kv_heads, tokens, head_dim).
    """

    def __init__(self, lengths: Sequence[int], paths: Sequence[Path], keep: bool) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._keep = keep
        self._has_paths = any(paths)
        self._blocks = _blocks(lengths, paths)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        window: tuple[int, int] = (-1, 0),
        scale: float | None = None,
    ) -> Tensor:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if self._keep:
            self.kept.append((_heads_first(k).contiguous(), _heads_first(v).contiguous()))
        if not self._has_paths:
            return attention(q, k, v, cu_seqlens, window=window, scale=scale)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        queries = _heads_first(q) * scale
        keys, values = _heads_first(k), _heads_first(v)
        for block in self._blocks:
            before = _crop([segment.kept(layer) for segment in block.path], block.first_position, window[0])
            heads = _attend_block(block, queries, keys, values, before, window[0])
            out[block.rows] = heads.transpose(0, 1)
        return out

    def advance(self, tokens: int) -> None:
        pass


@dataclass(frozen=True)
class _Part:
    """Consecutive queries of one sequence.

    Attributes:
        rows: where they lie in the pack.
        start: where their sequence begins in the pack.
    """

    rows: slice
    start: int


@dataclass(frozen=True)
class _Block:
    """Queries that continue the same path, back to back in the pack."""

    path: Path
    parts: list[_Part]

    @property
    def rows(self) -> slice:
        return slice(self.parts[0].rows.start, self.parts[-1].rows.stop)

    @property
    def first_position(self) -> int:
        """The place in its sequence, without the path, of the query that sees furthest back."""
        return min(part.rows.start - part.start for part in self.parts)


def _blocks(lengths: Sequence[int], paths: Sequence[Path]) -> list[_Block]:
    blocks: list[_Block] = []
    for (start, end), path in zip(pairwise(accumulate(lengths, initial=0)), paths, strict=True):
        for first in range(start, end, QUERY_BLOCK):
            part = _Part(slice(first, min(first + QUERY_BLOCK, end)), start)
            last = blocks[-1] if blocks else None
            fits = last is not None and part.rows.stop - last.rows.start <= QUERY_BLOCK
            if last is not None and fits and last.path is path:
                last.parts.append(part)
            else:
                blocks.append(_Block(path, [part]))
    return blocks


def _crop(segments: list[tuple[Tensor, Tensor]], first_position: int, left: int) -> list[tuple[Tensor, Tensor]]:
    """The last keys and values of a path, as many as the window of the query at `first_position` behind it reaches."""
    if left < 0:
        return segments
    wanted = max(left - first_position, 0)
    cropped: list[tuple[Tensor, Tensor]] = []
    for k, v in reversed(segments):
        if wanted > 0:
            cropped.insert(0, (k[:, -wanted:], v[:, -wanted:]))
            wanted -= k.shape[1]
    return cropped


def _attend_block(
    block: _Block, q: Tensor, k: Tensor, v: Tensor, before: list[tuple[Tensor, Tensor]], left: int
) -> Tensor:
    """(heads, rows of the block, head_dim) from the scaled queries (heads, tokens, head_dim), the keys and values
    (kv_heads, tokens, head_dim) of the pack, and those of the path."""
    first, rows = block.rows.start, block.rows
    score_dtype = statistics_dtype(q.dtype)
    # Of each part: its own keys, which begin where its first query's window does.
    own = [
        slice(max(part.start, part.rows.start - left) if left >= 0 else part.start, part.rows.stop)
        for part in block.parts
    ]
    shared = sum(keys.shape[1] for keys, _ in before)
    width = shared + max(keys.stop - keys.start for keys in own)
    scores = torch.empty(q.shape[0], rows.stop - first, width, dtype=score_dtype, device=q.device)
    scores[:, :, shared:] = -math.inf  # a part's keys are no other part's
    q_block = q[:, rows].to(score_dtype)
    column = 0
    for keys, _ in before:
        _multiply(q_block, keys.to(score_dtype).mT, out=scores[:, :, column : column + keys.shape[1]])
        column += keys.shape[1]
    for part, keys_of_part in zip(block.parts, own, strict=True):
        part_rows = slice(part.rows.start - first, part.rows.stop - first)
        count, own_keys = part.rows.stop - part.rows.start, keys_of_part.stop - keys_of_part.start
        own_scores = _multiply(q_block[:, part_rows], k[:, keys_of_part].to(score_dtype).mT)
        own_scores += _own_mask(count, own_keys, left, score_dtype, q.device)
        scores[:, part_rows, shared : shared + own_keys] = own_scores
        if left >= 0 and shared:
            # The query at place j sees the path's last `left - j` tokens.
            place = part.rows.start - part.start
            distance = torch.arange(place, place + count, device=q.device)[:, None] + torch.arange(
                shared, 0, -1, device=q.device
            )
            scores[:, part_rows, :shared].masked_fill_(distance > left, -math.inf)
    probabilities = torch.softmax(scores, dim=-1, out=scores).to(v.dtype)
    out = torch.zeros(q.shape[0], rows.stop - first, v.shape[2], dtype=v.dtype, device=v.device)
    column = 0
    for _, values in before:
        out += _multiply(probabilities[:, :, column : column + values.shape[1]], values)
        column += values.shape[1]
    for part, keys_of_part in zip(block.parts, own, strict=True):
        part_rows = slice(part.rows.start - first, part.rows.stop - first)
        own_keys = keys_of_part.stop - keys_of_part.start
        out[:, part_rows] += _multiply(probabilities[:, part_rows, shared : shared + own_keys], v[:, keys_of_part])
    return out


def _multiply(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """`x @ y`, (heads, rows, columns), of x (heads, rows, n) and y (kv_heads, n, columns): the rows of heads that share
    keys go into one product."""
    if x.shape[0] == y.shape[0]:
        return torch.bmm(x, y, out=out)
    product = torch.bmm(x.reshape(y.shape[0], -1, x.shape[2]), y).view(*x.shape[:2], -1)
    return product if out is None else out.copy_(product)


@lru_cache(maxsize=256)
def _own_mask(queries: int, keys: int, left: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(queries, keys): 0, or -inf for keys after a query or outside its window; the last query stands at the last
    key."""
    with torch.inference_mode(False):
        place = torch.arange(keys - queries, keys, device=device)[:, None]
        key = torch.arange(keys, device=device)
        hidden = key > place
        if left >= 0:
            hidden = hidden | (key < place - left)
        return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)
