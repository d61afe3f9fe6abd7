"""The bias and the GELU after a linear layer, reference and kernels, against torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels.bias_gelu import bias_gelu
from tests.kernels.errors import STRIDED_VIEWS, assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

WIDTHS = (1, 7, 199, 760, 1128, 2560, 2730, 6826, 8192, 10240)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Of the interpreter, where an exponential overflows and its reciprocal is 0, or infinity meets 0.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def torch_bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias, approximate="tanh")


def inputs(*shape: int, device: str = "cpu", scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """x and the bias, in fp64."""
    torch.manual_seed(0)
    return tuple(scale * torch.randn(size, dtype=torch.float64, device=device) for size in (shape, shape[-1:]))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 8), (6,), (1, 1), (0, 4)])
def test_equals_torch_in_fp64(shape: tuple[int, ...], device: str) -> None:
    x, bias = inputs(*shape, device=device, scale=3)
    torch.testing.assert_close(bias_gelu(x, bias), torch_bias_gelu(x, bias), rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("implementation")
def test_gradients_are_those_of_finite_differences(device: str) -> None:
    x, bias = (value.requires_grad_() for value in inputs(5, 6, device=device))
    assert torch.autograd.gradcheck(bias_gelu, (x, bias))


@pytest.mark.usefixtures("triton_kernels", "few_programs")
@pytest.mark.parametrize("width", WIDTHS)
def test_errors_of_the_kernels(width: int, device: str) -> None:
    for dtype in DTYPES:
        assert_error_within_twice_torch(bias_gelu, torch_bias_gelu, inputs(7, width, device=device, scale=3), dtype)


@pytest.mark.usefixtures("triton_kernels", "few_programs")
def test_errors_over_many_rows(device: str) -> None:
    assert_error_within_twice_torch(bias_gelu, torch_bias_gelu, inputs(301, 320, device=device))


@pytest.mark.usefixtures("triton_kernels")
def test_a_bias_in_fp32_for_activations_in_bf16(device: str) -> None:
    x, bias = inputs(9, 40, device=device)
    x, bias = x.bfloat16().requires_grad_(), bias.float().requires_grad_()
    y = bias_gelu(x, bias)
    torch.testing.assert_close(y, torch_bias_gelu(x.float(), bias).bfloat16(), rtol=2**-7, atol=0)
    grad_x, grad_bias = torch.autograd.grad(y.sum(), (x, bias))
    exact = torch.autograd.grad(torch_bias_gelu(x.float(), bias).sum(), bias)[0]
    assert grad_x.dtype == torch.bfloat16
    torch.testing.assert_close(grad_bias, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("overwrite", [False, True])
@STRIDED_VIEWS
def test_strided_inputs_and_expanded_gradients(view: Callable[[Tensor], Tensor], overwrite: bool, device: str) -> None:
    x, bias = inputs(9, 16, device=device)
    bias.requires_grad_()
    plain = view(x).contiguous().requires_grad_()
    expected = torch.autograd.grad(torch_bias_gelu(plain, bias).sum(), (plain, bias))
    strided = view(x).detach().requires_grad_()
    with poisoned_memory():  # and a gradient of stride 0
        actual = torch.autograd.grad(bias_gelu(strided, bias, overwrite=overwrite).sum(), (strided, bias))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_where_it_is(value: float, device: str) -> None:
    x, bias = (part.float() for part in inputs(5, 33, device=device))
    x[1, 7] = value
    bias[9] = value
    assert_same_non_finite(bias_gelu, torch_bias_gelu, (x, bias))


@pytest.mark.usefixtures("triton_kernels")
def test_no_rows_give_a_gradient_of_zero(device: str) -> None:
    x, bias = (value.requires_grad_() for value in inputs(0, 8, device=device))
    with poisoned_memory():
        bias_gelu(x, bias, overwrite=True).sum().backward()
    assert torch.equal(bias.grad, torch.zeros_like(bias))
    assert x.grad.shape == (0, 8)


@pytest.mark.usefixtures("triton_kernels", "few_programs")
def test_the_bias_adds_to_its_main_gradient(device: str) -> None:
    x, bias = (value.bfloat16().requires_grad_() for value in inputs(9, 64, device=device))
    plain = torch.autograd.grad(bias_gelu(x, bias).float().square().sum(), bias)[0]
    bias.main_grad = torch.full((64,), 2.0, device=device)
    bias_gelu(x, bias).float().square().sum().backward()
    assert bias.grad is None
    torch.testing.assert_close(bias.main_grad - 2, plain.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("triton_kernels", "few_programs")
def test_gradients_repeat_bit_for_bit(device: str) -> None:
    x, bias = (value.bfloat16().requires_grad_() for value in inputs(50, 200, device=device))
    first, second = (torch.autograd.grad(bias_gelu(x, bias).float().square().sum(), (x, bias)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("triton_kernels", "few_programs")
def test_overwriting_gives_the_same_gradients_without_memory_of_their_own(device: str) -> None:
    x, bias = (value.bfloat16().requires_grad_() for value in inputs(2, 5, 1040, device=device))
    expected = torch.autograd.grad(bias_gelu(x, bias).float().square().sum(), (x, bias))
    over = torch.autograd.grad(bias_gelu(x, bias, overwrite=True).float().square().sum(), (x, bias))
    assert all(torch.equal(a, b) for a, b in zip(over, expected, strict=True))
    assert over[0].data_ptr() == x.data_ptr()


@pytest.mark.usefixtures("triton_kernels")
def test_readers_of_overwritten_inputs_are_refused(device: str) -> None:
    x, bias = (value.requires_grad_() for value in inputs(3, 8, device=device))
    loss = bias_gelu(x * 1, bias, overwrite=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="overwrite=True"):
        loss.backward()
    inner = x * 1
    square = inner.square()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (square.sum() + bias_gelu(inner, bias, overwrite=True).sum()).backward()


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) cannot be \(3,\)"):
        bias_gelu(torch.zeros(2, 4), torch.zeros(3))
