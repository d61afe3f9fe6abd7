"""LayerNorm (arXiv 1607.06450)."""

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension; statistics in fp32.

    `x` is (..., width), `weight` and `bias` (width,); the result has the dtype of `x`.
    """
    return F.layer_norm(x, (x.shape[-1],), weight.to(x.dtype), bias.to(x.dtype), eps)
