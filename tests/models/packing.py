"""Packs of documents as the loader gives them."""

import torch
from torch import Tensor


def pack(lengths: list[int], vocab_size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random tokens and targets (some -100), with the positions and offsets of documents of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (sum(lengths),), generator=generator)
    targets = torch.randint(0, vocab_size, (sum(lengths),), generator=generator)
    targets[:: max(1, sum(lengths) // 3)] = -100
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return tokens, positions, cu_seqlens, targets
