"""The sum of squares against fp64."""

import pytest
import torch

from mindllm_engine.kernels import launch
from mindllm_engine.kernels.square_norm import BLOCK, CHUNK, square_norm
from tests.kernels.errors import poisoned_memory

# What the kernel's docstring promises, whatever the number of elements.
RELATIVE_ERROR = 2.5e-6


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("elements", [0, 1, 7, BLOCK - 1, BLOCK, CHUNK, CHUNK + 1, 3 * CHUNK + 2 * BLOCK + 5])
def test_within_its_bound_of_fp64(elements: int, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(elements, device=device).to(dtype)
    with poisoned_memory():
        norm = square_norm(x)
    assert (norm.shape, norm.dtype) == ((), torch.float32)
    assert norm.item() == pytest.approx(x.double().square().sum().item(), rel=RELATIVE_ERROR)


@pytest.mark.usefixtures("implementation")
def test_its_root_is_torchs_norm(device: str) -> None:
    x = torch.randn(5000, device=device)
    torch.testing.assert_close(square_norm(x).sqrt(), torch.linalg.vector_norm(x), rtol=1e-6, atol=0)


def test_the_root_of_the_reference_is_torchs_norm_bit_for_bit() -> None:
    for seed in range(50):
        x = torch.randn(1 + 37 * seed, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(square_norm(x).sqrt(), torch.linalg.vector_norm(x))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("place", [0, 4095, 70_000])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_propagates(value: float, place: int, device: str) -> None:
    x = torch.ones(70_001, device=device)
    x[place] = value
    torch.testing.assert_close(square_norm(x).item(), abs(value), equal_nan=True)


@pytest.mark.usefixtures("implementation")
def test_a_slice_may_begin_anywhere(device: str) -> None:
    x = torch.randn(10_003, device=device)
    assert square_norm(x[3:]).item() == pytest.approx(x[3:].double().square().sum().item(), rel=RELATIVE_ERROR)


@pytest.mark.usefixtures("triton_kernels")
def test_repeats_bit_for_bit_and_compiles_into_one_graph(device: str) -> None:
    x = torch.randn(150_000, device=device)
    once = square_norm(x)
    assert torch.equal(square_norm(x), once)
    assert torch.equal(torch.compile(square_norm, fullgraph=True)(x), once)


@pytest.mark.usefixtures("triton_kernels")
def test_the_largest_network_needs_few_partial_sums() -> None:
    with launch.recording() as launches:
        norm = square_norm(torch.empty(3_200_000_001, device="meta"))
    assert norm.is_meta
    assert [one.grid for one in launches] == [(48_829, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3), torch.zeros(8)[::2], torch.zeros(3, dtype=torch.float64)], ids=["2-D", "strided", "fp64"]
)
def test_other_buffers_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="square_norm takes a flat contiguous buffer"):
        square_norm(x)
