"""How far an operator may be from the truth: twice as far as torch's own computation in the same dtype.

The truth is torch's computation in fp64 on the same rounded inputs. Operators run on poisoned memory: whatever they
allocate holds NaN until they write it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

Operator = Callable[..., Any]
# Beyond twice torch's error: for outputs and for gradients.
OUTPUT_SLACK, GRADIENT_SLACK = 1e-5, 1e-4

# Ways in which rows may lie in memory, as a parameter `view`: a function of a matrix.
STRIDED_VIEWS = pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat((x, x), dim=1)[:, : x.shape[1]],
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:, None].expand(-1, 3, -1),
    ],
    ids=["columns first", "rows apart", "one row many times", "each row three times"],
)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` and its kin give NaN (integers: their largest value) within."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def assert_error_within_twice_torch(
    ours: Operator,
    torchs: Operator,
    inputs: Sequence[Tensor],
    dtype: torch.dtype = torch.bfloat16,
    summands: int = 1,
) -> None:
    """Outputs and gradients of both operators on copies of the fp64 `inputs` rounded to `dtype`.

    Both take the inputs and give a tensor or a tuple of them. Integer inputs stay as they are and get no gradient.
    `summands`: of the longest sum that a matrix product takes for a gradient. Libraries take it in fp32, in an order
    that differs by CPU, threads and where the operands lie, and its rounding grows with the root of their number: on
    one CPU the same `torch.mm` over 125,700 is off by 9e-7 or by 8e-5.
    """
    inputs = [x.detach().to(dtype) if x.is_floating_point() else x for x in inputs]
    exact = run(torchs, [x.double() if x.is_floating_point() else x for x in inputs], dtype)
    peers = run(torchs, inputs, dtype)
    with poisoned_memory():
        own = run(ours, inputs, dtype)
    assert [kind for kind, _ in own] == [kind for kind, _ in exact]
    for index, ((kind, truth), (_, peer), (_, mine)) in enumerate(zip(exact, peers, own, strict=True)):
        rounding = 2 * torch.finfo(dtype).eps + (summands**0.5) * torch.finfo(torch.float32).eps
        slack = OUTPUT_SLACK if kind == "output" else GRADIENT_SLACK + rounding * _largest(truth)
        assert mine.shape == truth.shape, f"{kind} {index}: shape {tuple(mine.shape)}, not {tuple(truth.shape)}"
        error, peer_error = ((value.double() - truth).abs() for value in (mine, peer))
        assert _largest(error) <= 2 * _largest(peer_error) + slack, (
            f"{kind} {index}: off by {_largest(error)}, torch by {_largest(peer_error)}"
        )
        assert _mean(error) <= 2 * _mean(peer_error) + slack, (
            f"{kind} {index}: off by {_mean(error)} on average, torch by {_mean(peer_error)}"
        )


def assert_same_non_finite(ours: Operator, torchs: Operator, inputs: Sequence[Tensor]) -> None:
    """NaN and infinity reach the same elements of outputs and gradients as in torch's computation."""
    dtype = next(x.dtype for x in inputs if x.is_floating_point())
    own, peers = run(ours, inputs, dtype), run(torchs, inputs, dtype)
    for index, ((kind, mine), (_, peer)) in enumerate(zip(own, peers, strict=True)):
        assert torch.equal(mine.isfinite(), peer.isfinite()), f"{kind} {index} is not finite elsewhere than torch's"


def run(operator: Operator, inputs: Sequence[Tensor], gradient_dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    """("output", value) and ("gradient", value) of an operator, for random upstream gradients rounded to a dtype."""
    inputs = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = operator(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    upstream = [
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(gradient_dtype).to(out.device, out.dtype)
        for out in outputs
    ]
    gradients = torch.autograd.grad(outputs, [x for x in inputs if x.requires_grad], upstream)
    return [("output", out.detach()) for out in outputs] + [("gradient", gradient) for gradient in gradients]


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _mean(x: Tensor) -> float:
    return x.mean().item() if x.numel() else 0.0
