"""GeGLU, bias-GELU and LayerNorm against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import reference
from mindllm_engine.kernels.bias_gelu import bias_gelu
from mindllm_engine.kernels.geglu import geglu
from mindllm_engine.kernels.layer_norm import layer_norm
from tests.kernels.errors import assert_error_within_twice_torch


def torch_geglu(gate_up: Tensor, approximate: str = "tanh") -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate) * up


def gate_up(rows: int, ffn: int, scale: float = 3.0) -> Tensor:
    torch.manual_seed(0)
    return scale * torch.randn(rows, 2 * ffn, dtype=torch.float64)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_geglu_equals_torch_in_fp64(approximate: str) -> None:
    x = gate_up(17, 6)
    torch.testing.assert_close(geglu(x, approximate), torch_geglu(x, approximate), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_geglu_gradients_are_those_of_finite_differences(approximate: str) -> None:
    x = gate_up(5, 4, scale=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: geglu(x, approximate), (x,))


def test_geglu_stays_finite_far_from_zero() -> None:
    x = torch.tensor([[1e4, -1e4, 30.0, -30.0, 2.0, 2.0, 2.0, 2.0]], requires_grad=True)
    out = geglu(x)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), torch.tensor([[2e4, 0.0, 60.0, 0.0]]))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[2.0, 0, 2.0, 0, 1e4, 0, 30.0, 0]]))


def test_geglu_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gate_up(20, 5).requires_grad_()
    (whole,) = torch.autograd.grad(geglu(x).sum(), x)
    monkeypatch.setattr(reference, "CPU_BLOCK_ELEMENTS", 5 * 3)
    (blocked,) = torch.autograd.grad(geglu(x).sum(), x)
    torch.testing.assert_close(blocked, whole, rtol=0, atol=0)


def test_geglu_refuses_an_odd_width() -> None:
    with pytest.raises(ValueError, match="even"):
        geglu(torch.zeros(2, 5))


def test_bf16_errors() -> None:
    assert_error_within_twice_torch(geglu, torch_geglu, (gate_up(200, 64),))


def test_bias_gelu_and_layer_norm_gradients() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 6), (6,), (6,)))
    assert torch.autograd.gradcheck(bias_gelu, (x, bias))
    torch.testing.assert_close(bias_gelu(x, bias), torch_geglu(torch.cat((x + bias, torch.ones_like(x)), dim=-1)))
    assert torch.autograd.gradcheck(lambda x, w, b: layer_norm(x, w, b, 1e-5), (x, weight, bias))
    centred = x - x.mean(dim=-1, keepdim=True)
    by_hand = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), by_hand)
