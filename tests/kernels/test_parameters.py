"""What all operators with parameters have in common: vectors as they lie in memory, main gradients, frozen weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels.backend import select_kernels
from mindllm_engine.kernels.bias_gelu import bias_gelu
from mindllm_engine.kernels.embedding_norm import embedding_norm
from mindllm_engine.kernels.layer_norm import layer_norm, residual_layer_norm
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from mindllm_engine.kernels.rms_norm import deepnorm_residual, rms_norm

ROWS, WIDTH = 5, 24

# Operators of activations and one vector, which serves as every parameter of theirs.
OF_A_VECTOR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, v: rms_norm(x, v, 1e-5),
    "deepnorm_residual": lambda x, v: deepnorm_residual(x, x.sin(), v, 1.7, 1e-5),
    "layer_norm": lambda x, v: layer_norm(x, v, v, 1e-5),
    "residual_layer_norm": lambda x, v: residual_layer_norm(x, x.sin(), v, v, 1e-5)[1],
    "bias_gelu": bias_gelu,
    "embedding_norm": lambda x, v: embedding_norm(torch.tensor([3, 0, 3], device=x.device), x, v, 1e-5),
}
# And of a matrix that is read by rows.
OF_A_MATRIX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding_norm": lambda x, w: embedding_norm(torch.tensor([3, 0, 3], device=x.device), w, x[0], 1e-5),
    "linear_cross_entropy": lambda x, w: linear_cross_entropy(x, w, torch.arange(ROWS, device=x.device)),
}


@pytest.mark.parametrize("name", OF_A_VECTOR)
def test_vectors_may_lie_in_memory_with_any_stride(name: str, device: str) -> None:
    torch.manual_seed(0)
    strided = torch.randn(WIDTH, 3, device=device)[:, 1]
    for vector in (strided, torch.ones(1, device=device).expand(WIDTH)):
        results = []
        for kernels in ("reference", "triton"):
            x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
            select_kernels(kernels)
            try:
                out = OF_A_VECTOR[name](x, vector.requires_grad_())
                results.append((out, *torch.autograd.grad(out.sin().sum(), (x, vector))))
            finally:
                select_kernels("auto")
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize(("operators", "shape"), [(OF_A_VECTOR, (WIDTH,)), (OF_A_MATRIX, (ROWS + 1, WIDTH))])
def test_a_frozen_parameter_keeps_its_main_gradient(
    operators: dict[str, Callable[[Tensor, Tensor], Tensor]], shape: tuple[int, ...], device: str
) -> None:
    for name, operator in operators.items():
        parameter = torch.randn(shape, device=device)
        parameter.main_grad = torch.zeros_like(parameter)
        operator(torch.randn(ROWS, WIDTH, device=device, requires_grad=True), parameter).sum().backward()
        assert not parameter.main_grad.any(), name


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3), torch.zeros(WIDTH, dtype=torch.bfloat16), torch.zeros(WIDTH, 2)[:, 0]],
    ids=["shape", "dtype", "strides"],
)
def test_a_main_gradient_that_does_not_fit_is_an_error(wrong: Tensor, device: str) -> None:
    weight = torch.randn(WIDTH, device=device, requires_grad=True)
    weight.main_grad = wrong.to(device)
    for operator in OF_A_VECTOR.values():
        with pytest.raises(ValueError, match="main_grad"):
            operator(torch.randn(ROWS, WIDTH, device=device), weight)
