"""The token embedding and the RMSNorm after it."""

import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels.rms_norm import rms_norm


def embedding_norm(tokens: Tensor, table: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm(table[tokens])`: tokens (T,) integers, table (vocab, width), weight (width,); returns (T, width)."""
    return rms_norm(F.embedding(tokens, table), weight, eps)
