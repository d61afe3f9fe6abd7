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

from mindllm_engine.kernels.cross_entropy import cross_entropy
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from mindllm_engine.kernels.rms_norm import deepnorm_residual, rms_norm

EPS = 1e-5
# DeepNorm's alpha of 32 layers.
ALPHA = 64**0.25
HIDDEN_3B, HIDDEN_1B = 2560, 2048
VOCAB_3B, VOCAB_1B = 125_700, 100_000
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
        ours: the operator; returns a tensor or a tuple of tensors, the first of which backward starts from.
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


def cross_entropy_case(shape: str, vocab: int) -> OperatorCase:
    """2 and 4 bytes a logit in bf16."""
    return OperatorCase(
        operator="cross_entropy",
        shape=shape,
        width=vocab,
        make=lambda tokens, device, dtype: (
            *activations(1, vocab)(tokens, device, dtype),
            torch.randint(0, vocab, (tokens,), device=device),
        ),
        ours=cross_entropy,
        eager=lambda logits, targets: F.cross_entropy(logits.float(), targets, reduction="none"),
        forward_bytes=lambda tokens, size: tokens * vocab * size,
        backward_bytes=lambda tokens, size: 2 * tokens * vocab * size,
    )


def linear_cross_entropy_case(shape: str, width: int, vocab: int) -> OperatorCase:
    """Three GEMMs. The gradients of both matrices are made in the forward."""
    return OperatorCase(
        operator="linear_cross_entropy",
        shape=shape,
        width=width,
        make=lambda tokens, device, dtype: (
            *activations(1, width)(tokens, device, dtype),
            torch.randn(vocab, width, device=device, dtype=dtype).requires_grad_(),
            torch.randint(0, vocab, (tokens,), device=device),
        ),
        ours=linear_cross_entropy,
        eager=lambda hidden, weight, targets: F.cross_entropy(
            F.linear(hidden, weight).float(), targets, reduction="none"
        ),
        forward_bytes=lambda tokens, size: 2 * (tokens + vocab) * width * size,
        backward_bytes=lambda tokens, size: 2 * (tokens + vocab) * width * size,
        flops=lambda tokens: 6 * tokens * width * vocab,
    )


def model_cases() -> list[OperatorCase]:
    """Each operator where the networks use it."""
    return [
        rms_norm_case("3B", HIDDEN_3B),
        deepnorm_residual_case("3B", HIDDEN_3B),
        cross_entropy_case("3B", VOCAB_3B),
        cross_entropy_case("1.3B", VOCAB_1B),
        linear_cross_entropy_case("3B", HIDDEN_3B, VOCAB_3B),
        linear_cross_entropy_case("1.3B", HIDDEN_1B, VOCAB_1B),
    ]


def sweep_cases() -> list[OperatorCase]:
    """The row-wise operators from 1K to 64K columns."""
    return [case(f"width {width}", width) for case in (rms_norm_case, deepnorm_residual_case) for width in SWEEP_WIDTHS]
