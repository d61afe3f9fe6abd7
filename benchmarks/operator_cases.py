"""The operators at the shapes of the two networks: what `kernels.py` times and `machine_code.py` compiles.

Sizes are those of configs/mindllm_3b.yaml and configs/mindllm_1.3b_transfer.yaml. Bytes are the least that an operator
must move: each input read once, each output written once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels.adamw import adamw, join_master, split_master
from mindllm_engine.kernels.bias_gelu import bias_gelu
from mindllm_engine.kernels.cross_entropy import cross_entropy
from mindllm_engine.kernels.embedding_norm import embedding_norm
from mindllm_engine.kernels.geglu import geglu, geglu_split
from mindllm_engine.kernels.layer_norm import layer_norm, residual_layer_norm
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from mindllm_engine.kernels.rms_norm import deepnorm_residual, rms_norm
from mindllm_engine.kernels.rotary import rotary, rotary_table
from mindllm_engine.kernels.square_norm import square_norm
from mindllm_engine.kernels.swiglu import swiglu

EPS = 1e-5
# DeepNorm's alpha of 32 layers.
ALPHA = 64**0.25
HIDDEN_3B, HIDDEN_1B = 2560, 2048
HEAD_DIM_3B, POSITIONS_3B = 128, 2048
FFN = 8192  # of both MindLLM networks
FFN_MINICPM = 5760  # of MiniCPM-2.4B
VOCAB_3B, VOCAB_1B = 125_700, 100_000
SWEEP_WIDTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
# Parameters that the optimizer's cases update, a token.
PARAMETERS = 8192

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
        ours: the operator; returns a tensor or a tuple of tensors, from all of which backward starts.
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


def rotary_case(shape: str, hidden: int) -> OperatorCase:
    """Queries and keys are read and written in place, 4 bytes an element in bf16; so are all gradients, in backward."""

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        leaf = torch.randn(tokens, 3 * hidden // HEAD_DIM_3B, HEAD_DIM_3B, device=device, dtype=dtype).requires_grad_()
        positions = torch.arange(tokens, device=device) % POSITIONS_3B
        # Not a leaf, as a projection's output is none: only then is it rotated in place.
        return leaf.clone(), positions, rotary_table(POSITIONS_3B, HEAD_DIM_3B, 10000.0, device)

    return OperatorCase(
        operator="rotary",
        shape=shape,
        width=3 * hidden,
        make=make,
        ours=rotary,
        eager=eager_rotary,
        forward_bytes=lambda tokens, size: 4 * tokens * hidden * size,
        backward_bytes=lambda tokens, size: 6 * tokens * hidden * size,
    )


def eager_rotary(qkv: Tensor, positions: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As Transformers' Llama does it: `x cos + rotate_half(x) sin` in the dtype of `qkv`."""
    cos, sin = (part.repeat(1, 2).to(qkv.dtype)[:, None] for part in table[positions].chunk(2, dim=-1))
    q, k, v = qkv.chunk(3, dim=1)
    return rotate_half(q, cos, sin), rotate_half(k, cos, sin), v


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (tokens, heads, head_dim), rotated."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def geglu_case(shape: str, ffn: int, approximate: str) -> OperatorCase:
    """6 and 10 bytes an element of the output in bf16; gate and up in one tensor."""
    return OperatorCase(
        operator="geglu",
        shape=f"{shape} {approximate}",
        width=2 * ffn,
        make=lambda tokens, device, dtype: tuple(activations(1, 2 * ffn)(tokens, device, dtype)),
        ours=lambda gate_up: geglu(gate_up, approximate),
        eager=lambda gate_up: F.gelu(gate_up[:, :ffn], approximate=approximate) * gate_up[:, ffn:],
        forward_bytes=lambda tokens, size: 3 * tokens * ffn * size,
        backward_bytes=lambda tokens, size: 5 * tokens * ffn * size,
    )


def swiglu_case(shape: str, ffn: int) -> OperatorCase:
    """6 and 10 bytes an element of the output in bf16; gate and up in one tensor."""
    return OperatorCase(
        operator="swiglu",
        shape=shape,
        width=2 * ffn,
        make=lambda tokens, device, dtype: tuple(activations(1, 2 * ffn)(tokens, device, dtype)),
        ours=swiglu,
        eager=lambda gate_up: F.silu(gate_up[:, :ffn]) * gate_up[:, ffn:],
        forward_bytes=lambda tokens, size: 3 * tokens * ffn * size,
        backward_bytes=lambda tokens, size: 5 * tokens * ffn * size,
    )


def geglu_split_case(shape: str, ffn: int) -> OperatorCase:
    """As `geglu`, with gate and up in two tensors."""
    return OperatorCase(
        operator="geglu_split",
        shape=shape,
        width=ffn,
        make=lambda tokens, device, dtype: tuple(activations(2, ffn)(tokens, device, dtype)),
        ours=geglu_split,
        eager=lambda gate, up: F.gelu(gate, approximate="tanh") * up,
        forward_bytes=lambda tokens, size: 3 * tokens * ffn * size,
        backward_bytes=lambda tokens, size: 5 * tokens * ffn * size,
    )


def bias_gelu_case(shape: str, ffn: int) -> OperatorCase:
    """4 and 6 bytes an element in bf16."""
    return OperatorCase(
        operator="bias_gelu",
        shape=shape,
        width=ffn,
        make=lambda tokens, device, dtype: (*activations(1, ffn)(tokens, device, dtype), vector(ffn, device, dtype)),
        ours=bias_gelu,
        eager=lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        forward_bytes=lambda tokens, size: 2 * tokens * ffn * size,
        backward_bytes=lambda tokens, size: 3 * tokens * ffn * size,
    )


def adamw_case(shape: str, grad_dtype: torch.dtype, split: bool) -> OperatorCase:
    """30 bytes an element with an fp32 gradient and bf16 parameters, 2 less with a bf16 gradient.

    `split` keeps the master weights as bf16 parameters (whatever the dtype asked for) and 16 extra bits: 28 bytes.
    """
    constants = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 100}

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        elements = tokens * PARAMETERS
        master, grad, m = (torch.randn(elements, device=device) for _ in range(3))
        v, grad_scale = torch.rand(elements, device=device), torch.ones((), device=device)
        param, extra_bits = split_master(master)
        if split:
            return param, extra_bits, grad.to(grad_dtype), m, v, grad_scale
        return master.to(dtype), master, grad.to(grad_dtype), m, v, grad_scale

    def ours(param: Tensor, *others: Tensor) -> Tensor:
        adamw(param, *others[:-1], decayed=param.numel() // 2, grad_scale=others[-1], **constants)
        return param

    return OperatorCase(
        operator="adamw",
        shape=shape,
        width=PARAMETERS,
        make=make,
        ours=ours,
        eager=lambda *tensors: adamw_in_torch(*tensors, **constants),
        forward_bytes=lambda tokens, size: tokens * PARAMETERS * (24 + grad_dtype.itemsize + (0 if split else size)),
        backward_bytes=None,
    )


def adamw_in_torch(
    param: Tensor,
    master: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    grad_scale: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> Tensor:
    """What `adamw` does to a slice whose first half decays, a pass over memory for each operation."""
    split = master.dtype == torch.int16
    weights = join_master(param, master) if split else master
    g = grad.float() * grad_scale
    m.lerp_(g, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    weights[: param.numel() // 2].mul_(1 - lr * weight_decay)
    denominator = v.sqrt().div_((1 - betas[1] ** step) ** 0.5).add_(eps)
    weights.addcdiv_(m, denominator, value=-lr / (1 - betas[0] ** step))
    if split:
        rounded, extra_bits = split_master(weights)
        master.copy_(extra_bits)
        return param.copy_(rounded)
    return param.copy_(weights)


def square_norm_case() -> OperatorCase:
    """4 bytes an element: the main gradient, fp32 whatever the activations."""
    return OperatorCase(
        operator="square_norm",
        shape="3B",
        width=PARAMETERS,
        make=lambda tokens, device, dtype: (torch.randn(tokens * PARAMETERS, device=device),),
        ours=square_norm,
        eager=lambda x: torch.linalg.vector_norm(x).square(),
        forward_bytes=lambda tokens, size: tokens * PARAMETERS * 4,
        backward_bytes=None,
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


def linear_cross_entropy_main_grad_case(shape: str, width: int, vocab: int) -> OperatorCase:
    """As training runs it: dweight is added to the fp32 main gradient, a fourth argument, in the forward.

    The weight asks for no gradient here, so that backward gives that of the hidden state alone.
    """

    def ours(hidden: Tensor, weight: Tensor, targets: Tensor, main_grad: Tensor) -> Tensor:
        weight = weight.detach().requires_grad_()
        weight.main_grad = main_grad
        return linear_cross_entropy(hidden, weight, targets, grad_scale=1.0)

    plain = linear_cross_entropy_case(shape, width, vocab)

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        hidden, weight, targets = plain.make(tokens, device, dtype)
        return hidden, weight.detach(), targets, torch.zeros(vocab, width, device=device)

    return replace(
        plain,
        operator="linear_cross_entropy_main_grad",
        make=make,
        ours=ours,
        eager=lambda hidden, weight, targets, main_grad: plain.eager(hidden, weight, targets),
    )


def model_cases() -> list[OperatorCase]:
    """Each operator where the networks use it."""
    return [
        rms_norm_case("3B", HIDDEN_3B),
        deepnorm_residual_case("3B", HIDDEN_3B),
        rotary_case("3B", HIDDEN_3B),
        geglu_case("3B", FFN, "tanh"),
        geglu_case("3B", FFN, "none"),
        geglu_split_case("3B", FFN),
        swiglu_case("2.4B", FFN_MINICPM),
        bias_gelu_case("1.3B", FFN),
        adamw_case("3B", torch.float32, split=False),
        adamw_case("3B, bf16 gradient", torch.bfloat16, split=False),
        adamw_case("3B, split master", torch.float32, split=True),
        square_norm_case(),
        embedding_norm_case("3B", VOCAB_3B, HIDDEN_3B),
        layer_norm_case("1.3B", HIDDEN_1B),
        residual_layer_norm_case("1.3B", HIDDEN_1B),
        cross_entropy_case("3B", VOCAB_3B),
        cross_entropy_case("1.3B", VOCAB_1B),
        linear_cross_entropy_case("3B", HIDDEN_3B, VOCAB_3B),
        linear_cross_entropy_case("1.3B", HIDDEN_1B, VOCAB_1B),
        linear_cross_entropy_main_grad_case("3B", HIDDEN_3B, VOCAB_3B),
    ]


def sweep_cases() -> list[OperatorCase]:
    """The row-wise operators from 1K to 64K columns."""
    cases = (rms_norm_case, deepnorm_residual_case, layer_norm_case, residual_layer_norm_case)
    return [case(f"width {width}", width) for case in cases for width in SWEEP_WIDTHS]
