"""Keys and values of the tokens decoded so far, for one sequence."""

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values for a batch of one: the prompt first, then a token at a time.

    Each layer calls `append` once in a forward, with the keys and values of that forward's tokens; the network calls
    `advance` when all layers have.
    """

    def __init__(
        self, n_layers: int, max_seq_len: int, n_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # (n_layers, key or value, max_seq_len, n_heads, head_dim)
        self._store = torch.empty(n_layers, 2, max_seq_len, n_heads, head_dim, device=device, dtype=dtype)
        self.length = 0

    @property
    def max_seq_len(self) -> int:
        return self._store.shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (tokens, n_heads, head_dim) after what `layer` holds; returns its keys and values with them.

        Raises ValueError when the sequence outgrows the cache.
        """
        end = self.length + k.shape[0]
        if end > self.max_seq_len:
            raise ValueError(f"the cache holds {self.max_seq_len} tokens, and the sequence has grown to {end}")
        self._store[layer, 0, self.length : end] = k
        self._store[layer, 1, self.length : end] = v
        return self._store[layer, 0, :end], self._store[layer, 1, :end]

    def cu_seqlens(self, tokens: int) -> Tensor:
        """Offsets (2,) int32 of the keys that a forward of `tokens` more tokens sees."""
        return torch.tensor([0, self.length + tokens], dtype=torch.int32, device=self._store.device)

    def advance(self, tokens: int) -> None:
        self.length += tokens
