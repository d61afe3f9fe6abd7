"""The bias of a linear layer and the GELU after it (arXiv 1606.08415, the tanh form)."""

import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x + bias)` in the tanh form; `x` is (..., width), `bias` (width,), the result has the shape of `x`."""
    return F.gelu(x + bias, approximate="tanh")
