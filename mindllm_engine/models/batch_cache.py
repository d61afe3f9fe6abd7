"""Keys and values of many sequences that are decoded together, a token each in every forward."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mindllm_engine.kernels.reference import statistics_dtype
from mindllm_engine.models.kv_cache import AttentionCache
from mindllm_engine.models.tree_cache import Path


class BatchCache(AttentionCache):
    """Padded keys and values of sequences whose beginnings a `TreeCache` has computed.

    Args:
        paths: the keys and values of each sequence so far.
        n_layers: of the network.
        room: tokens that are still to come for each.
    """

    def __init__(self, paths: Sequence[Path], n_layers: int, room: int) -> None:
        lengths = [sum(map(len, path)) for path in paths]
        keys, _ = paths[0][0].kept(0)
        kv_heads, _, head_dim = keys.shape
        # (n_layers, key or value, sequences, kv_heads, tokens, head_dim)
        self._store = keys.new_zeros(n_layers, 2, len(paths), kv_heads, max(lengths) + room, head_dim)
        for number, path in enumerate(paths):
            start = 0
            for segment in path:
                for layer in range(n_layers):
                    for store, part in zip(self._store[layer], segment.kept(layer), strict=True):
                        store[number, :, start : start + len(segment)] = part
                start += len(segment)
        self._lengths = torch.tensor(lengths, device=keys.device)
        self._longest = max(lengths)

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
        """q is (sequences, heads, head_dim), k and v (sequences, kv_heads, head_dim): one token of each."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        keys, values = self._store[layer, :, :, :, : self._longest + 1]  # (sequences, kv_heads, tokens, head_dim)
        numbers = torch.arange(q.shape[0], device=q.device)
        keys[numbers, :, self._lengths] = k
        values[numbers, :, self._lengths] = v
        dtype = statistics_dtype(q.dtype)
        # (sequences, kv_heads, heads of queries that share keys, tokens)
        scores = (q.unflatten(1, (k.shape[1], -1)).to(dtype) * scale) @ keys.to(dtype).mT
        place, own = torch.arange(keys.shape[2], device=q.device), self._lengths[:, None]
        hidden = place > own
        if window[0] >= 0:
            hidden = hidden | (place < own - window[0])
        scores.masked_fill_(hidden[:, None, None], -math.inf)
        return (torch.softmax(scores, dim=-1).to(v.dtype) @ values).flatten(1, 2)

    def advance(self, tokens: int) -> None:
        """Each sequence has grown by one token."""
        self._lengths += 1
        self._longest += 1

    def lengths(self) -> Tensor:
        """(sequences,) tokens of each: the position of its next one."""
        return self._lengths

    def select(self, sequences: Tensor) -> None:
        """Go on with some of the sequences only, by their numbers."""
        self._store = self._store[:, :, sequences]
        self._lengths = self._lengths[sequences]
        self._longest = int(self._lengths.max())
