"""RMSNorm and the DeepNorm residual against torch, in fp64 and bf16."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import reference
from mindllm_engine.kernels.embedding_norm import embedding_norm
from mindllm_engine.kernels.rms_norm import deepnorm_residual, rms_norm
from tests.kernels.errors import assert_bf16_error_within_twice_torch

EPS = 1e-5


def torch_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


def inputs(rows: int, width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, width, dtype=torch.float64), torch.randn(width, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 8), (1, 1), (0, 4)])
def test_equals_torch_in_fp64(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape[-1], dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, weight, EPS), torch_rms_norm(x, weight), rtol=1e-13, atol=1e-13)


def test_gradients_are_those_of_finite_differences() -> None:
    x, weight = (value.requires_grad_() for value in inputs(5, 6))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, EPS), (x, weight))
    f = torch.randn_like(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, f, w: deepnorm_residual(x, f, w, 1.7, EPS), (x, f, weight))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = (value.requires_grad_() for value in inputs(50, 6))
    whole = torch.autograd.grad(rms_norm(x, weight, EPS).square().sum(), (x, weight))
    monkeypatch.setattr(reference, "CPU_BLOCK_ELEMENTS", 6 * 7)  # seven rows a block: the last holds one
    blocked = torch.autograd.grad(rms_norm(x, weight, EPS).square().sum(), (x, weight))
    torch.testing.assert_close(blocked, whole, rtol=1e-12, atol=1e-12)


def test_non_contiguous_inputs_and_expanded_gradients() -> None:
    x, weight = inputs(9, 8)
    transposed = x.t().contiguous().t().requires_grad_()
    plain = x.clone().requires_grad_()
    rms_norm(transposed, weight, EPS).sum().backward()  # sum() sends a gradient of stride 0
    torch_rms_norm(plain, weight).sum().backward()
    torch.testing.assert_close(transposed.grad, plain.grad, rtol=1e-12, atol=1e-12)


def test_bf16_errors() -> None:
    assert_bf16_error_within_twice_torch(lambda x, w: rms_norm(x, w, EPS), torch_rms_norm, inputs(300, 320))
    x, weight = inputs(300, 320)
    assert_bf16_error_within_twice_torch(
        lambda x, f, w: deepnorm_residual(x, f, w, 1.7, EPS),
        lambda x, f, w: torch_rms_norm(torch.add(f, x, alpha=1.7), w),
        (x, x.flip(0), weight),
    )


def test_embedding_norm_normalises_the_rows_it_takes() -> None:
    table, weight = (value.requires_grad_() for value in inputs(11, 6))
    tokens = torch.tensor([3, 0, 3, 10])
    torch.testing.assert_close(embedding_norm(tokens, table, weight, EPS), torch_rms_norm(table[tokens], weight))
    assert torch.autograd.gradcheck(lambda table, weight: embedding_norm(tokens, table, weight, EPS), (table, weight))
