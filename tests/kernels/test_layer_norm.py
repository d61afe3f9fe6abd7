"""LayerNorm, alone and after a residual addition, reference and kernels, against torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import layer_norm as layer_norm_file
from mindllm_engine.kernels.layer_norm import layer_norm, residual_layer_norm
from tests.kernels.errors import STRIDED_VIEWS, assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

EPS = 1e-5
WIDTHS = (1, 7, 199, 760, 1128, 2048, 2560, 2730, 6826, 8192, 10240, 16385)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, EPS)


def torch_residual(x: Tensor, f: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x + f, torch_layer_norm(x + f, weight, bias)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return layer_norm(x, weight, bias, EPS)


def our_residual(x: Tensor, f: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return residual_layer_norm(x, f, weight, bias, EPS)


def inputs(*shape: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, f, the weight and the bias, in fp64."""
    x, f = (torch.randn(shape, dtype=torch.float64, device=device) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], dtype=torch.float64, device=device) for _ in range(2))
    return x, f, weight, bias


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 8), (1, 1), (0, 4), (1, 16500)])
def test_equals_torch_in_fp64(shape: tuple[int, ...], device: str) -> None:
    x, f, weight, bias = inputs(*shape, device=device)
    truth = torch_layer_norm(x, weight, bias)
    torch.testing.assert_close(ours(x, weight, bias), truth, rtol=1e-12, atol=1e-12)
    truths = torch_residual(x, f, weight, bias)
    torch.testing.assert_close(our_residual(x, f, weight, bias), truths, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_gradients_are_those_of_finite_differences(device: str) -> None:
    x, f, weight, bias = (value.requires_grad_() for value in inputs(2, 5, device=device))
    assert torch.autograd.gradcheck(ours, (x, weight, bias))
    assert torch.autograd.gradcheck(our_residual, (x, f, weight, bias))
    assert torch.autograd.gradcheck(lambda *values: our_residual(*values)[1], (x, f, weight, bias))
    assert torch.autograd.gradcheck(lambda x, f: our_residual(x, f, weight, bias)[0], (x, f))


@pytest.mark.usefixtures("triton_kernels", "few_programs")
@pytest.mark.parametrize("width", WIDTHS)
def test_errors_of_the_kernels(width: int, device: str) -> None:
    for dtype in DTYPES:
        x, f, weight, bias = inputs(6 if width <= 8192 else 2, width, device=device)
        assert_error_within_twice_torch(ours, torch_layer_norm, (x, weight, bias), dtype)
        assert_error_within_twice_torch(our_residual, torch_residual, (x, f, weight, bias), dtype)


@pytest.mark.usefixtures("implementation")
def test_errors_over_many_rows(device: str) -> None:
    x, f, weight, bias = inputs(200, 320, device=device)
    assert_error_within_twice_torch(our_residual, torch_residual, (x, f, weight, bias))


@pytest.mark.usefixtures("triton_kernels")
def test_wide_rows_and_many_groups(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_norm_file, "WIDE_ROWS", 2)
    x, f, weight, bias = inputs(5, 17000, device=device)
    assert_error_within_twice_torch(our_residual, torch_residual, (x, f, weight, bias))


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("width", [300, 17000])
def test_a_variance_far_below_the_squared_mean(width: int, device: str) -> None:
    """In fp32, E[x^2] - E[x]^2 would leave nothing of a variance of 1e-7 of the squared mean."""
    x, _, weight, bias = inputs(2, width, device=device)
    x += torch.tensor([[3000.0], [-3000.0]], device=device)
    x = x.float()
    truth = torch_layer_norm(x.double(), weight.float().double(), bias.float().double())
    y = ours(x, weight.float(), bias.float())
    torch.testing.assert_close(y.double(), truth, rtol=5e-3, atol=5e-3)


@pytest.mark.usefixtures("triton_kernels")
def test_both_inputs_share_one_gradient(device: str) -> None:
    x, f, weight, bias = (value.requires_grad_() for value in inputs(3, 8, device=device))
    total, y = our_residual(x, f, weight, bias)
    grad_x, grad_f = torch.autograd.grad((total, y), (x, f), (torch.ones_like(y), torch.randn_like(y)))
    assert grad_x.data_ptr() == grad_f.data_ptr()


@pytest.mark.usefixtures("implementation")
@STRIDED_VIEWS
def test_strided_inputs_and_expanded_gradients(view: Callable[[Tensor], Tensor], device: str) -> None:
    x, _, weight, bias = inputs(9, 8, device=device)
    strided = view(x).detach().requires_grad_()
    plain = view(x).contiguous().requires_grad_()
    with poisoned_memory():
        sum(part.sum() for part in our_residual(strided, strided, weight, bias)).backward()  # a gradient of stride 0
    sum(part.sum() for part in torch_residual(plain, plain, weight, bias)).backward()
    torch.testing.assert_close(strided.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("width", [33, 16400])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value: float, width: int, device: str) -> None:
    x, f, weight, bias = (part.float() for part in inputs(5, width, device=device))
    x[1, 7] = value
    f[3, 0] = value
    assert_same_non_finite(our_residual, torch_residual, (x, f, weight, bias))


@pytest.mark.usefixtures("triton_kernels")
def test_no_rows_give_a_gradient_of_zero(device: str) -> None:
    x, f, weight, bias = (value.requires_grad_() for value in inputs(0, 8, device=device))
    with poisoned_memory():
        our_residual(x, f, weight, bias)[1].sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros_like(bias))
    assert x.grad.shape == (0, 8)


@pytest.mark.usefixtures("triton_kernels", "few_programs")
def test_weight_and_bias_add_to_their_main_gradients(device: str) -> None:
    x, f, weight, bias = (value.bfloat16().requires_grad_() for value in inputs(9, 64, device=device))
    plain = torch.autograd.grad(our_residual(x, f, weight, bias)[1].float().square().sum(), (weight, bias))
    weight.main_grad, bias.main_grad = (torch.full((64,), start, device=device) for start in (2.0, -3.0))
    our_residual(x, f, weight, bias)[1].float().square().sum().backward()
    assert weight.grad is None
    assert bias.grad is None
    torch.testing.assert_close(weight.main_grad - 2, plain[0].float(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(bias.main_grad + 3, plain[1].float(), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("triton_kernels", "few_programs")
@pytest.mark.parametrize("width", [200, 9000])
def test_gradients_repeat_bit_for_bit(width: int, device: str) -> None:
    values = [value.bfloat16().requires_grad_() for value in inputs(12, width, device=device)]
    first, second = (
        torch.autograd.grad(sum(out.float().square().sum() for out in our_residual(*values)), values) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_shapes_that_do_not_agree_are_refused() -> None:
    x, width = torch.zeros(2, 4), torch.zeros(4)
    with pytest.raises(ValueError, match="weight"):
        layer_norm(x, torch.zeros(3), width, EPS)
    with pytest.raises(ValueError, match="bias"):
        layer_norm(x, width, torch.zeros(3), EPS)
    with pytest.raises(ValueError, match="agree"):
        residual_layer_norm(x, torch.zeros(4, 2), width, width, EPS)
