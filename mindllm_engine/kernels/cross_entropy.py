"""Cross-entropy of given logits."""

import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels.reference import statistics_dtype


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Losses of single tokens, (T,) in fp32 (fp64 for fp64 logits), 0 where the target is `ignore_index`.

    `logits` is (T, vocab), `targets` (T,) integers. Where the logits come from a hidden state and a projection,
    `linear_cross_entropy` gives the same without holding them.
    """
    return F.cross_entropy(
        logits.to(statistics_dtype(logits.dtype)), targets, ignore_index=ignore_index, reduction="none"
    )
