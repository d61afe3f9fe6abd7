"""GeGLU, reference and kernels, of one tensor and of two, against torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import reference
from mindllm_engine.kernels.geglu import geglu, geglu_split
from tests.kernels.errors import assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

FORMS = ("tanh", "none")
FFNS = (1, 7, 199, 760, 1128, 2560, 2730, 6826, 8192, 10240)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Of the interpreter, where an exponential overflows and its reciprocal is 0, or infinity meets 0.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def torch_split(gate: Tensor, up: Tensor, approximate: str = "tanh") -> Tensor:
    return F.gelu(gate, approximate=approximate) * up


def torch_geglu(gate_up: Tensor, approximate: str = "tanh") -> Tensor:
    return torch_split(*gate_up.chunk(2, dim=-1), approximate)


def normal(*shape: int, device: str = "cpu", scale: float = 1.0) -> Tensor:
    torch.manual_seed(0)
    return scale * torch.randn(shape, dtype=torch.float64, device=device)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of the sum of squares, with respect to copies of the inputs that are not leaves: they may be overwritten."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*(leaf * 1 for leaf in leaves)).square().sum(), leaves)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 8), (6,), (1, 2), (0, 4)])
def test_equals_torch_in_fp64(shape: tuple[int, ...], approximate: str, device: str) -> None:
    x = normal(*shape, device=device, scale=3)
    expected = torch_geglu(x, approximate)
    torch.testing.assert_close(geglu(x, approximate), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(geglu_split(*x.chunk(2, dim=-1), approximate), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("approximate", FORMS)
def test_gradients_are_those_of_finite_differences(approximate: str, device: str) -> None:
    gate_up, gate, up = (normal(5, width, device=device).requires_grad_() for width in (8, 4, 4))
    assert torch.autograd.gradcheck(lambda x: geglu(x, approximate), (gate_up,))
    assert torch.autograd.gradcheck(lambda gate, up: geglu_split(gate, up, approximate), (gate, up))


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("ffn", FFNS)
def test_errors_of_the_kernels(ffn: int, device: str) -> None:
    gate_up = normal(3, 2 * ffn, device=device, scale=3)
    for dtype in DTYPES:
        for approximate in FORMS:
            assert_error_within_twice_torch(
                lambda x, approximate=approximate: geglu(x, approximate),
                lambda x, approximate=approximate: torch_geglu(x, approximate),
                (gate_up,),
                dtype,
            )
        assert_error_within_twice_torch(geglu_split, torch_split, gate_up.chunk(2, dim=-1), dtype)


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_of_the_reference(dtype: torch.dtype, approximate: str) -> None:
    assert_error_within_twice_torch(
        lambda x: geglu(x, approximate), lambda x: torch_geglu(x, approximate), (normal(200, 128, scale=3),), dtype
    )


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_order_of_magnitude(dtype: torch.dtype, approximate: str, device: str) -> None:
    """Of the gate, from 1e-38 to 1e12 and both signs: far out the GELU is 0 or its argument, with slope 0 or 1."""
    gate = torch.logspace(-38, 12, 257, dtype=torch.float64, device=device)
    gate = torch.cat((gate, -gate))[None].to(dtype).requires_grad_()
    up = torch.ones_like(gate)
    out = geglu_split(gate, up, approximate)
    (slope,) = torch.autograd.grad(out.sum(), gate)
    exact_gate = gate.detach().double().requires_grad_()
    exact = torch_split(exact_gate, up.double(), approximate)
    (exact_slope,) = torch.autograd.grad(exact.sum(), exact_gate)
    tolerances = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 4e-6}
    torch.testing.assert_close(out.double(), exact, **tolerances)
    torch.testing.assert_close(slope.double(), exact_slope, **tolerances)


@pytest.mark.usefixtures("implementation")
def test_stays_finite_far_from_zero(device: str) -> None:
    x = torch.tensor([[1e4, -1e4, 30.0, -30.0, 2.0, 2.0, 2.0, 2.0]], requires_grad=True, device=device)
    out = geglu(x)
    out.sum().backward()
    torch.testing.assert_close(out.detach().cpu(), torch.tensor([[2e4, 0.0, 60.0, 0.0]]))
    assert x.grad is not None
    torch.testing.assert_close(x.grad.cpu(), torch.tensor([[2.0, 0, 2.0, 0, 1e4, 0, 30.0, 0]]))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(20, 10)
    whole = gradients(geglu, x)
    monkeypatch.setattr(reference, "CPU_BLOCK_ELEMENTS", 5 * 3)
    torch.testing.assert_close(gradients(geglu, x), whole, rtol=0, atol=0)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat((x, x), dim=1)[:, : x.shape[1]],
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:, None].expand(-1, 3, -1),
        lambda x: x.repeat(2, 1).unflatten(0, (2, -1)).transpose(0, 1),
    ],
    ids=["columns first", "rows apart", "one row many times", "each row three times", "batches swapped"],
)
def test_strided_inputs_and_expanded_gradients(view: Callable[[Tensor], Tensor], overwrite: bool, device: str) -> None:
    plain = view(normal(9, 16, device=device)).contiguous().requires_grad_()
    torch_geglu(plain).sum().backward()
    strided = view(normal(9, 16, device=device)).detach().requires_grad_()
    with poisoned_memory():
        (packed,) = torch.autograd.grad(geglu(strided, overwrite=overwrite).sum(), strided)  # a gradient of stride 0
    torch.testing.assert_close(packed, plain.grad, rtol=1e-12, atol=1e-12)
    parts = [part.detach().requires_grad_() for part in view(normal(9, 16, device=device)).chunk(2, dim=-1)]
    with poisoned_memory():
        split = torch.autograd.grad(geglu_split(*parts, overwrite=overwrite).sum(), parts)
    torch.testing.assert_close(torch.cat(split, dim=-1), plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_where_it_is(value: float, approximate: str, device: str) -> None:
    gate_up = normal(5, 66, device=device).float()
    gate_up[1, 7] = value
    gate_up[3, 40] = value
    assert_same_non_finite(lambda x: geglu(x, approximate), lambda x: torch_geglu(x, approximate), (gate_up,))


@pytest.mark.usefixtures("implementation")
def test_no_rows(device: str) -> None:
    x = normal(0, 8, device=device).requires_grad_()
    geglu(x, overwrite=True).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 8)


@pytest.mark.usefixtures("implementation")
def test_overwriting_gives_the_same_gradients_without_memory_of_their_own(device: str) -> None:
    shape = (2, 5, 1040)
    for function, inputs in (
        (geglu, [normal(*shape, device=device).bfloat16()]),
        (geglu_split, [x.contiguous() for x in normal(*shape, device=device).bfloat16().chunk(2, dim=-1)]),
        (geglu_split, normal(10, 1040, device=device).bfloat16().chunk(2, dim=-1)),
    ):
        inputs = [x.requires_grad_() for x in inputs]
        expected = torch.autograd.grad(function(*inputs).float().square().sum(), inputs)
        over = torch.autograd.grad(function(*inputs, overwrite=True).float().square().sum(), inputs)
        for gradient, truth, x in zip(over, expected, inputs, strict=True):
            assert torch.equal(gradient, truth)
            assert gradient.data_ptr() == x.data_ptr()
            assert torch.equal(x.detach(), truth)


@pytest.mark.usefixtures("implementation")
def test_one_tensor_as_gate_and_up_is_not_overwritten(device: str) -> None:
    x = normal(4, 8, device=device)
    torch.testing.assert_close(
        gradients(lambda x: geglu_split(x, x, overwrite=True), x), gradients(lambda x: torch_split(x, x), x)
    )


@pytest.mark.usefixtures("implementation")
def test_a_second_backward_over_overwritten_inputs_is_refused(device: str) -> None:
    x = normal(3, 8, device=device).requires_grad_()
    loss = geglu(x * 1, overwrite=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="overwrite=True"):
        loss.backward()
    kept = geglu(x * 1).sum()
    first, second = (torch.autograd.grad(kept, x, retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])


@pytest.mark.usefixtures("implementation")
def test_another_reader_of_overwritten_inputs_finds_out(device: str) -> None:
    """Autograd knows that they changed, so that a node which saved them and runs later raises an error."""
    gate_up = normal(3, 8, device=device).requires_grad_() * 1
    square = gate_up.square()
    loss = square.sum() + geglu(gate_up, overwrite=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("implementation")
def test_gradients_repeat_bit_for_bit(device: str) -> None:
    x = normal(20, 400, device=device).bfloat16()
    assert torch.equal(gradients(geglu, x)[0], gradients(geglu, x)[0])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"even last dimension, got the shape \(2, 5\)"):
        geglu(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="got 'sigmoid'"):
        geglu(torch.zeros(2, 4), "sigmoid")
    with pytest.raises(ValueError, match="agree"):
        geglu_split(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="agree"):
        geglu_split(torch.zeros(2, 4), torch.zeros(2, 4).bfloat16())
