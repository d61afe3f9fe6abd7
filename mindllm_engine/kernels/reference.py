"""What the PyTorch references share: the dtype of their statistics, and blocks of rows that stay in a core's cache.

On a CPU an elementwise pass over a tensor that lies in the L2 cache costs 0.1-0.3 ns an element; over fresh memory it
costs ten times that in page faults. The references therefore take a few hundred rows at a time through a small fp32
scratch. On a GPU one block holds all rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# 64 Ki elements are 256 KiB in fp32; the references hold up to five such buffers, and an L2 cache has 1-2 MiB.
CPU_BLOCK_ELEMENTS = 65_536


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums and exponentials of `dtype` inputs are taken: fp64 for fp64, fp32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows_per_block(rows: int, width: int, device: torch.device) -> int:
    """How many rows of `width` elements a reference takes at a time."""
    return rows if device.type != "cpu" else max(1, min(rows, CPU_BLOCK_ELEMENTS // max(width, 1)))


def row_blocks(rows: int, block: int) -> Iterator[slice]:
    """Consecutive slices of at most `block` rows that cover `rows`."""
    for start in range(0, rows, max(block, 1)):
        yield slice(start, min(start + block, rows))


def accumulate_(total: Tensor, addend: Tensor) -> None:
    """`total += addend` for a matrix of a narrower dtype; torch would first convert the whole of it into fresh memory."""
    if total.dtype == addend.dtype:
        total += addend
        return
    block = rows_per_block(total.shape[0], total.shape[1], total.device)
    scratch = torch.empty(block, total.shape[1], dtype=total.dtype, device=total.device)
    for part in row_blocks(total.shape[0], block):
        total[part] += scratch[: part.stop - part.start].copy_(addend[part])
