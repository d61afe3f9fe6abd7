"""What the networks share when they draw their first parameters, and count them."""

import math

import torch
from torch import Tensor, nn


def xavier_normal_(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    """Fill a (fan_out, fan_in) matrix from N(0, gain^2 * 2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 12)."""
    normal_(weight, gain * math.sqrt(2 / sum(weight.shape)), generator)


def normal_(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill `weight` from N(0, std^2), drawn in fp32 on the CPU: neither device nor dtype changes the numbers."""
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=generator))


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model; a tied embedding counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_layer_parameters(model: nn.Module) -> int:
    """Parameters without the embeddings of tokens and positions: N as MiniCPM counts it (arXiv 2404.06395, Tables 2
    and 8)."""
    embeddings = {"embedding", "position_embedding"}
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in embeddings)


def matrix_flops(model: nn.Module, without: nn.Parameter | None = None) -> int:
    """Operations of a token's forward and backward in the matrices of a model but `without`: 2 an element for the
    output, 2 for the gradient of the input, and 2 for that of the matrix unless it is frozen."""
    matrices = (x for x in model.parameters() if x.ndim == 2 and x is not without)
    return sum((6 if matrix.requires_grad else 4) * matrix.numel() for matrix in matrices)
