"""SwiGLU, reference and kernels, against torch. Strides, overwriting and reports of it are the gated linear unit's own,
and tested with GeGLU."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import reference
from mindllm_engine.kernels.swiglu import swiglu
from tests.kernels.errors import assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

FFNS = (1, 7, 199, 760, 1128, 3840, 5760, 8192)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Of the interpreter, where an exponential overflows and its reciprocal is 0, or infinity meets 0.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def torch_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def normal(*shape: int, device: str = "cpu", scale: float = 1.0) -> Tensor:
    torch.manual_seed(0)
    return scale * torch.randn(shape, dtype=torch.float64, device=device)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the sum of squares, with respect to a copy of `x` that is not a leaf: it may be overwritten."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf * 1).square().sum(), leaf)[0]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 8), (6,), (1, 2), (0, 4)])
def test_equals_torch_in_fp64(shape: tuple[int, ...], device: str) -> None:
    x = normal(*shape, device=device, scale=3)
    torch.testing.assert_close(swiglu(x), torch_swiglu(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient(swiglu, x), gradient(torch_swiglu, x), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_gradients_are_those_of_finite_differences(device: str) -> None:
    assert torch.autograd.gradcheck(swiglu, (normal(5, 8, device=device).requires_grad_(),))


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("ffn", FFNS)
def test_errors_of_the_kernels(ffn: int, device: str) -> None:
    for dtype in DTYPES:
        assert_error_within_twice_torch(swiglu, torch_swiglu, (normal(3, 2 * ffn, device=device, scale=3),), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_of_the_reference(dtype: torch.dtype) -> None:
    assert_error_within_twice_torch(swiglu, torch_swiglu, (normal(200, 128, scale=3),), dtype)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_order_of_magnitude(dtype: torch.dtype, device: str) -> None:
    """Of the gate, from 1e-38 to 1e12 and both signs: far out the SiLU is 0 or its argument, with slope 0 or 1."""
    gate = torch.logspace(-38, 12, 257, dtype=torch.float64, device=device)
    gate = torch.cat((gate, -gate))[None].to(dtype)
    packed = torch.cat((gate, torch.ones_like(gate)), dim=-1).requires_grad_()
    out = swiglu(packed)
    (slopes,) = torch.autograd.grad(out.sum(), packed)
    exact_packed = packed.detach().double().requires_grad_()
    exact = torch_swiglu(exact_packed)
    (exact_slopes,) = torch.autograd.grad(exact.sum(), exact_packed)
    tolerances = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 4e-6}
    torch.testing.assert_close(out.double(), exact, **tolerances)
    torch.testing.assert_close(slopes.double(), exact_slopes, **tolerances)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(20, 10)
    whole = gradient(swiglu, x)
    monkeypatch.setattr(reference, "CPU_BLOCK_ELEMENTS", 5 * 3)
    assert torch.equal(gradient(swiglu, x), whole)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("overwrite", [False, True])
def test_strided_inputs_and_expanded_gradients(overwrite: bool, device: str) -> None:
    x = normal(9, 40, device=device)[:, :16]
    plain = x.detach().contiguous().requires_grad_()
    torch_swiglu(plain).sum().backward()
    strided = x.detach().requires_grad_()
    with poisoned_memory():
        (found,) = torch.autograd.grad(swiglu(strided, overwrite=overwrite).sum(), strided)  # a gradient of stride 0
    torch.testing.assert_close(found, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_where_it_is(value: float, device: str) -> None:
    gate_up = normal(5, 66, device=device).float()
    gate_up[1, 7] = value
    gate_up[3, 40] = value
    assert_same_non_finite(swiglu, torch_swiglu, (gate_up,))


@pytest.mark.usefixtures("implementation")
def test_a_second_backward_over_overwritten_inputs_names_the_operator(device: str) -> None:
    loss = swiglu(normal(3, 8, device=device).requires_grad_() * 1, overwrite=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"swiglu\(overwrite=True\)"):
        loss.backward()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"swiglu needs an even last dimension, got the shape \(2, 5\)"):
        swiglu(torch.zeros(2, 5))
