"""What the operators with a GELU or SiLU in them share (both arXiv 1606.08415): the function and its derivative, in
PyTorch and in Triton, and gradients that take over the memory of the inputs. All are x / 2 * (1 + t(x)); a `form` names
t, that of a GELU as `torch.nn.functional.gelu` does:

    "tanh"   gelu(x) = x / 2 * (1 + tanh(SLOPE * (x + CUBIC * x^3)))
    "none"   gelu(x) = x / 2 * (1 + erf(x / sqrt(2)))
    "silu"   silu(x) = x / 2 * (1 + tanh(x / 2)) = x * sigmoid(x)
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOPE = math.sqrt(2 / math.pi)
CUBIC = 0.044715

# (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), and the exponential unit of a GPU works in base 2.
_SILU_EXPONENT = tl.constexpr(-math.log2(math.e))
_EXPONENT = tl.constexpr(-2 * SLOPE * math.log2(math.e))
_CUBIC_EXPONENT = tl.constexpr(-2 * SLOPE * math.log2(math.e) * CUBIC)
# The derivative of 2u.
_SLOPE_2 = tl.constexpr(2 * SLOPE)
_CUBIC_SLOPE_2 = tl.constexpr(6 * SLOPE * CUBIC)
# x / sqrt(2); the normal density is exp(-x^2 / 2) / sqrt(2 pi) = 2^(DENSITY_EXPONENT * x^2) * DENSITY.
_ROOT_HALF = tl.constexpr(math.sqrt(0.5))
_DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))
_DENSITY_EXPONENT = tl.constexpr(-0.5 * math.log2(math.e))


def check_gelu(approximate: str) -> None:
    """Raise ValueError for what is neither "tanh" nor "none", the erf form."""
    if approximate not in ("tanh", "none"):
        raise ValueError(f'approximate must be "tanh" or "none", got {approximate!r}')


def squash(x: Tensor, form: str, out: Tensor) -> Tensor:
    """`out` = t(x), the tanh or the erf in `x / 2 * (1 + t(x))`, without a temporary."""
    if form == "silu":
        return torch.mul(x, 0.5, out=out).tanh_()
    if form == "none":
        return torch.mul(x, math.sqrt(0.5), out=out).erf_()
    torch.mul(x, x, out=out)
    return torch.addcmul(x, out, x, value=CUBIC, out=out).mul_(SLOPE).tanh_()


def twice_derivative(x: Tensor, t: Tensor, form: str, scratch: Tensor, out: Tensor) -> Tensor:
    """`out` = 1 + t + x * t'(x), twice the derivative, given t = `squash(x)`.

    Of the forms with a tanh of u: t' = (1 - t^2) * u', so that it is (1 + t) * (1 + x * u' * (1 - t)). Of the erf form:
    t' = SLOPE * exp(-x^2 / 2).
    """
    if form == "silu":
        torch.mul(x, 0.5, out=scratch)  # x * u'
    else:
        torch.mul(x, x, out=scratch)
        if form == "none":
            scratch.mul_(-0.5).exp_().mul_(SLOPE)
            return torch.addcmul(t, scratch, x, out=out).add_(1)
        scratch.mul_(3 * CUBIC * SLOPE).add_(SLOPE).mul_(x)  # x * u'
    torch.addcmul(scratch, scratch, t, value=-1, out=out).add_(1)
    return out.addcmul_(out, t)


@triton.jit
def activate(x, FORM: tl.constexpr):
    """gelu(x) or silu(x) of a tile in fp32 or fp64."""
    return x * _share(x, FORM)


@triton.jit
def activate_and_derivative(x, FORM: tl.constexpr):
    """gelu(x) or silu(x) = x * p(x), and its derivative p + x * p'."""
    share = _share(x, FORM)
    # Of a tanh p' = p * (1 - p) * (2u)', multiplied from the left, for p * (1 - p) is 0 where x^3 is too large.
    if FORM == "silu":
        derivative = share + (share - share * share) * x
    elif FORM == "tanh":
        derivative = share + (share - share * share) * x * (x * x * _CUBIC_SLOPE_2 + _SLOPE_2)
    else:
        derivative = share + x * (tl.exp2(x * x * _DENSITY_EXPONENT) * _DENSITY)
    return x * share, derivative


@triton.jit
def _share(x, FORM: tl.constexpr):
    """p(x), from 0 to 1, in x * p(x)."""
    if FORM == "none":
        share = tl.erf(x * _ROOT_HALF) * 0.5 + 0.5
    else:
        exponent = x * _SILU_EXPONENT if FORM == "silu" else x * (x * x * _CUBIC_EXPONENT + _EXPONENT)
        # The reciprocal as a square: what is above 1 needs none of the scaling that a division does against underflow,
        # a fifth of the forward's instructions.
        root = tl.rsqrt(1 + tl.exp2(exponent))
        share = root * root
    return share


def refuse_second_backward(ctx: Any, operator: str) -> None:
    """Raise RuntimeError where an earlier backward of the node has overwritten its inputs."""
    if getattr(ctx, "overwritten", False):
        raise RuntimeError(
            f"{operator}(overwrite=True) has written gradients over its inputs, so its backward cannot run again; "
            "leave overwrite out where a graph is retained"
        )


def take_over(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Memory for the gradients of `inputs`: their own, or fresh where elements of them share a place.

    Autograd is told that they changed: another node that has saved one of them and runs later raises an error.
    """
    if not all(_elements_apart(x) for x in inputs) or len({x.data_ptr() for x in inputs}) < len(inputs):
        return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    ctx.overwritten = True
    torch.autograd.graph.increment_version(inputs)
    return tuple(x.detach() for x in inputs)


def _elements_apart(x: Tensor) -> bool:
    """Whether rows of `x` are views of it (`as_rows` does not copy) that do not overlap."""
    return x.is_contiguous() or (x.ndim == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1])
