"""How far an operator may be from the truth in bf16: twice as far as torch's own computation of it in bf16."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Operator = Callable[..., Tensor]


def assert_bf16_error_within_twice_torch(ours: Operator, torchs: Operator, inputs: Sequence[Tensor]) -> None:
    """Outputs and gradients of `ours` and `torchs` on bf16 copies of the fp64 `inputs`, against `torchs` in fp64."""
    inputs = [x.detach().bfloat16() for x in inputs]
    truth, own, reference = (
        _run(operator, [x.to(dtype) for x in inputs])
        for operator, dtype in ((torchs, torch.float64), (ours, torch.bfloat16), (torchs, torch.bfloat16))
    )
    for index, (exact, mine, peer) in enumerate(zip(truth, own, reference, strict=True)):
        slack = 1e-5 if index == 0 else 1e-4
        error, peer_error = ((value.double() - exact).abs().max().item() for value in (mine, peer))
        assert error <= 2 * peer_error + slack, f"tensor {index}: {error} against torch's {peer_error}"
        mean, peer_mean = ((value.double() - exact).abs().mean().item() for value in (mine, peer))
        assert mean <= 2 * peer_mean + slack, f"tensor {index}: {mean} against torch's {peer_mean} on average"


def _run(operator: Operator, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = operator(*inputs)
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(out.shape, generator=generator, dtype=torch.float64).bfloat16()
    return [out.detach(), *torch.autograd.grad(out, inputs, gradient.to(out.dtype))]
