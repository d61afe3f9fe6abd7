"""RMSNorm and the DeepNorm residual, reference and kernels, against torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import reference
from mindllm_engine.kernels import rms_norm as rms_norm_file
from mindllm_engine.kernels.rms_norm import deepnorm_residual, deepnorm_residual_and_sum, rms_norm
from tests.kernels.errors import STRIDED_VIEWS, assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

EPS, ALPHA = 1e-5, 1.7
WIDTHS = (1, 7, 199, 760, 1128, 2560, 2730, 6826, 8192, 10240, 16385)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def torch_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


def torch_residual(x: Tensor, f: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.add(f, x, alpha=ALPHA)
    return torch_rms_norm(total, weight), total


def ours(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, EPS)


def our_residual(x: Tensor, f: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return deepnorm_residual_and_sum(x, f, weight, ALPHA, EPS)


def inputs(*shape: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x, f and the weight, in fp64."""
    x, f = (torch.randn(shape, dtype=torch.float64, device=device) for _ in range(2))
    return x, f, torch.randn(shape[-1], dtype=torch.float64, device=device)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 8), (1, 1), (0, 4)])
def test_equals_torch_in_fp64(shape: tuple[int, ...], device: str) -> None:
    x, f, weight = inputs(*shape, device=device)
    torch.testing.assert_close(ours(x, weight), torch_rms_norm(x, weight), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(our_residual(x, f, weight), torch_residual(x, f, weight), rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("implementation")
def test_gradients_are_those_of_finite_differences(device: str) -> None:
    x, f, weight = (value.requires_grad_() for value in inputs(5, 6, device=device))
    assert torch.autograd.gradcheck(ours, (x, weight))
    assert torch.autograd.gradcheck(our_residual, (x, f, weight))
    assert torch.autograd.gradcheck(lambda x, f, w: deepnorm_residual(x, f, w, ALPHA, EPS), (x, f, weight))
    assert torch.autograd.gradcheck(lambda x, f, w: our_residual(x, f, w)[1], (x, f, weight))


@pytest.mark.usefixtures("triton_kernels", "few_programs")
@pytest.mark.parametrize("width", WIDTHS)
def test_errors_of_the_kernels(width: int, device: str) -> None:
    for dtype in DTYPES:
        x, f, weight = inputs(6, width, device=device)
        assert_error_within_twice_torch(ours, torch_rms_norm, (x, weight), dtype)
        assert_error_within_twice_torch(our_residual, torch_residual, (x, f, weight), dtype)


@pytest.mark.usefixtures("implementation")
def test_errors_over_many_rows(device: str) -> None:
    x, f, weight = inputs(300, 320, device=device)
    assert_error_within_twice_torch(ours, torch_rms_norm, (x, weight))
    assert_error_within_twice_torch(our_residual, torch_residual, (x, f, weight))


@pytest.mark.usefixtures("triton_kernels")
def test_wide_rows_and_many_groups(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm_file, "WIDE_ROWS", 4)
    x, f, weight = inputs(9, 17000, device=device)
    assert_error_within_twice_torch(our_residual, torch_residual, (x, f, weight))


@pytest.mark.usefixtures("implementation")
def test_rounding_before_the_weight_is_llamas(device: str) -> None:
    x, _, weight = (value.bfloat16() for value in inputs(40, 96, device=device))
    wide = x.float()
    llamas = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).bfloat16()
    # Another order of the sum, or a GPU's rsqrt, may move a value across the border of two bf16 numbers.
    assert (rms_norm(x, weight, EPS, round_before_weight=True) == llamas).float().mean() > 0.999
    assert (rms_norm(x, weight, EPS) == llamas).float().mean() < 0.9


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, weight = (value.requires_grad_() for value in inputs(50, 6))
    whole = torch.autograd.grad(ours(x, weight).square().sum(), (x, weight))
    monkeypatch.setattr(reference, "CPU_BLOCK_ELEMENTS", 6 * 7)  # seven rows a block: the last holds one
    blocked = torch.autograd.grad(ours(x, weight).square().sum(), (x, weight))
    torch.testing.assert_close(blocked, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@STRIDED_VIEWS
def test_strided_inputs_and_expanded_gradients(view: Callable[[Tensor], Tensor], device: str) -> None:
    x, _, weight = inputs(9, 8, device=device)
    strided = view(x).detach().requires_grad_()
    plain = view(x).contiguous().requires_grad_()
    with poisoned_memory():
        sum(part.sum() for part in our_residual(strided, strided, weight)).backward()  # a gradient of stride 0
    sum(part.sum() for part in torch_residual(plain, plain, weight)).backward()
    torch.testing.assert_close(strided.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value: float, device: str) -> None:
    x, f, weight = (part.float() for part in inputs(5, 33, device=device))
    x[1, 7] = value
    f[3, 0] = value
    assert_same_non_finite(our_residual, torch_residual, (x, f, weight))


@pytest.mark.usefixtures("triton_kernels")
def test_no_rows_give_a_gradient_of_zero(device: str) -> None:
    x, f, weight = (value.requires_grad_() for value in inputs(0, 8, device=device))
    with poisoned_memory():
        our_residual(x, f, weight)[0].sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert x.grad.shape == (0, 8)


@pytest.mark.usefixtures("triton_kernels", "few_programs")
def test_the_weight_adds_to_its_main_gradient(device: str) -> None:
    x, f, weight = (value.bfloat16().requires_grad_() for value in inputs(9, 64, device=device))
    plain = torch.autograd.grad(our_residual(x, f, weight)[0].float().square().sum(), weight)[0]
    weight.main_grad = torch.full((64,), 2.0, device=device)
    our_residual(x, f, weight)[0].float().square().sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad - 2, plain.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("triton_kernels", "few_programs")
def test_gradients_repeat_bit_for_bit(device: str) -> None:
    x, f, weight = (value.bfloat16().requires_grad_() for value in inputs(50, 200, device=device))
    first, second = (
        torch.autograd.grad(our_residual(x, f, weight)[0].float().square().sum(), (x, f, weight)) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        rms_norm(torch.zeros(2, 4), torch.zeros(3), EPS)
    with pytest.raises(ValueError, match="agree"):
        deepnorm_residual(torch.zeros(2, 4), torch.zeros(4, 2), torch.zeros(4), ALPHA, EPS)
