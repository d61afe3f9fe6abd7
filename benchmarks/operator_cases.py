"""The operators at the shapes of the two networks: what `kernels.py` times and `machine_code.py` compiles.

Sizes are those of configs/mindllm_3b.yaml and configs/mindllm_1.3b_transfer.yaml. Bytes are the least that an operator
must move: each input read once, each output written once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels.embedding_norm import embedding_norm
from mindllm_engine.kernels.layer_norm import layer_norm, residual_layer_norm
from mindllm_engine.kernels.rms_norm import deepnorm_residual, rms_norm

EPS = 1e-5
# DeepNorm's alpha of 32 layers.
ALPHA = 64**0.25
HIDDEN_3B, HIDDEN_1B = 2560, 2048
VOCAB_3B = 125_700
SWEEP_WIDTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)

Make = Callable[[int, torch.device, torch.dtype], tuple[Any, ...]]
Bytes = Callable[[int, int], int]


@dataclass(frozen=True)
class OperatorCase:
    """An operator at one shape, for any number of tokens.

    Attributes:
        operator: the public function's name.
        shape: what it is, for the table: "3B", "1.3B", or a width of the sweep.
        width: elements of a row of its main input.
        make: (tokens, device, dtype) -> arguments of `ours` and `eager`; floating-point ones that want a gradient
            require it.
        ours: the operator; returns a tensor or a tuple of tensors; backward starts from all of them.
        eager: the same in plain PyTorch.
        forward_bytes, backward_bytes: (tokens, bytes an element) -> least traffic; None where there is no backward.
        flops: (tokens) -> operations of forward and backward where matrix products bound the operator.
    """

    operator: str
    shape: str
    width: int
    make: Make
    ours: Callable[..., Any]
    eager: Callable[..., Any]
    forward_bytes: Bytes
    backward_bytes: Bytes | None
    flops: Callable[[int], int] | None = None


def activations(count: int, width: int) -> Callable[[int, torch.device, torch.dtype], list[Tensor]]:
    """`count` random tensors (tokens, width) that require a gradient."""

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        return [torch.randn(tokens, width, device=device, dtype=dtype).requires_grad_() for _ in range(count)]

    return make


def vector(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A random weight (width,) that requires a gradient."""
    return torch.randn(width, device=device, dtype=dtype).requires_grad_()


def rms_norm_case(shape: str, width: int) -> OperatorCase:
    """4 and 6 bytes an element in bf16."""
    return OperatorCase(
        operator="rms_norm",
        shape=shape,
        width=width,
        make=lambda tokens, device, dtype: (
            *activations(1, width)(tokens, device, dtype),
            vector(width, device, dtype),
        ),
        ours=lambda x, weight: rms_norm(x, weight, EPS),
        eager=lambda x, weight: F.rms_norm(x, (width,), weight, EPS),
        forward_bytes=lambda tokens, size: 2 * tokens * width * size,
        backward_bytes=lambda tokens, size: 3 * tokens * width * size,
    )


def deepnorm_residual_case(shape: str, width: int) -> OperatorCase:
    """8 bytes an element in bf16 each way: the sum is written for the backward, which gives two gradients."""
    return OperatorCase(
        operator="deepnorm_residual",
        shape=shape,
        width=width,
        make=lambda tokens, device, dtype: (
            *activations(2, width)(tokens, device, dtype),
            vector(width, device, dtype),
        ),
        ours=lambda x, f, weight: deepnorm_residual(x, f, weight, ALPHA, EPS),
        eager=lambda x, f, weight: F.rms_norm(torch.add(f, x, alpha=ALPHA), (width,), weight, EPS),
        forward_bytes=lambda tokens, size: 4 * tokens * width * size,
        backward_bytes=lambda tokens, size: 4 * tokens * width * size,
    )


def embedding_norm_case(shape: str, vocab: int, width: int) -> OperatorCase:
    """4 bytes an element in bf16, and 4 back, besides the dense gradient of the table, which dwarfs both."""
    return OperatorCase(
        operator="embedding_norm",
        shape=shape,
        width=width,
        make=lambda tokens, device, dtype: (
            torch.randint(vocab, (tokens,), device=device),
            *activations(1, width)(vocab, device, dtype),
            vector(width, device, dtype),
        ),
        ours=lambda tokens, table, weight: embedding_norm(tokens, table, weight, EPS),
        eager=lambda tokens, table, weight: F.rms_norm(F.embedding(tokens, table), (width,), weight, EPS),
        forward_bytes=lambda tokens, size: 2 * tokens * width * size,
        backward_bytes=lambda tokens, size: (2 * tokens + vocab) * width * size,
    )


def layer_norm_case(shape: str, width: int) -> OperatorCase:
    """4 and 6 bytes an element in bf16."""
    return OperatorCase(
        operator="layer_norm",
        shape=shape,
        width=width,
        make=lambda tokens, device, dtype: (
            *activations(1, width)(tokens, device, dtype),
            vector(width, device, dtype),
            vector(width, device, dtype),
        ),
        ours=lambda x, weight, bias: layer_norm(x, weight, bias, EPS),
        eager=lambda x, weight, bias: F.layer_norm(x, (width,), weight, bias, EPS),
        forward_bytes=lambda tokens, size: 2 * tokens * width * size,
        backward_bytes=lambda tokens, size: 3 * tokens * width * size,
    )


def residual_layer_norm_case(shape: str, width: int) -> OperatorCase:
    """8 bytes an element in bf16 each way: backward has the gradients of the sum and of the norm, and gives one."""

    def eager(x: Tensor, f: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + f
        return total, F.layer_norm(total, (width,), weight, bias, EPS)

    return OperatorCase(
        operator="residual_layer_norm",
        shape=shape,
        width=width,
        make=lambda tokens, device, dtype: (
            *activations(2, width)(tokens, device, dtype),
            vector(width, device, dtype),
            vector(width, device, dtype),
        ),
        ours=lambda x, f, weight, bias: residual_layer_norm(x, f, weight, bias, EPS),
        eager=eager,
        forward_bytes=lambda tokens, size: 4 * tokens * width * size,
        backward_bytes=lambda tokens, size: 4 * tokens * width * size,
    )


def model_cases() -> list[OperatorCase]:
    """Each operator where the networks use it."""
    return [
        rms_norm_case("3B", HIDDEN_3B),
        deepnorm_residual_case("3B", HIDDEN_3B),
        embedding_norm_case("3B", VOCAB_3B, HIDDEN_3B),
        layer_norm_case("1.3B", HIDDEN_1B),
        residual_layer_norm_case("1.3B", HIDDEN_1B),
    ]


def sweep_cases() -> list[OperatorCase]:
    """The row-wise operators from 1K to 64K columns."""
    cases = (rms_norm_case, deepnorm_residual_case, layer_norm_case, residual_layer_norm_case)
    return [case(f"width {width}", width) for case in cases for width in SWEEP_WIDTHS]
