"""Keys and values of the tokens that came before: what a network asks of any cache, and the one of a single sequence.

`TreeCache` and `BatchCache` (beside this file) serve many sequences at once.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mindllm_engine.kernels.attention import attention


class AttentionCache(ABC):
    """Knows what the tokens of a forward see beside each other, and attends to it.

    Each layer calls `attend` once in a forward; the network calls `advance` when all layers have.
    """

    @abstractmethod
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
        """`kernels.attention.attention` with the keys and values that this cache holds before each sequence's own.

        q is (tokens, heads, head_dim) of the forward's tokens, and so is the result; k and v are (tokens, kv_heads,
        head_dim). `layer` counts from 0.
        """

    @abstractmethod
    def advance(self, tokens: int) -> None:
        """All layers have attended to `tokens` more tokens."""


class KVCache(AttentionCache):
    """Preallocated keys and values for a batch of one: the prompt first, then a token at a time."""

    def __init__(
        self, n_layers: int, max_seq_len: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # (n_layers, key or value, max_seq_len, kv_heads, head_dim)
        self._store = torch.empty(n_layers, 2, max_seq_len, kv_heads, head_dim, device=device, dtype=dtype)
        self._cu_seqlens_k: Tensor | None = None  # of the forward under way
        self.length = 0

    @property
    def max_seq_len(self) -> int:
        return self._store.shape[2]

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
        keys, values = self._append(layer, k, v)
        if layer == 0:
            self._cu_seqlens_k = torch.tensor([0, keys.shape[0]], dtype=torch.int32, device=keys.device)
        return attention(q, keys, values, cu_seqlens, cu_seqlens_k=self._cu_seqlens_k, window=window, scale=scale)

    def _append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (tokens, kv_heads, head_dim) after what `layer` holds; returns its keys and values with them.

        Raises ValueError when the sequence outgrows the cache.
        """
        end = self.length + k.shape[0]
        if end > self.max_seq_len:
            raise ValueError(f"the cache holds {self.max_seq_len} tokens, and the sequence has grown to {end}")
        self._store[layer, 0, self.length : end] = k
        self._store[layer, 1, self.length : end] = v
        return self._store[layer, 0, :end], self._store[layer, 1, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens
