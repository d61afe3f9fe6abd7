"""Rows without columns, and tensors without dimensions, are refused by every operator that works on rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels.bias_gelu import bias_gelu
from mindllm_engine.kernels.layer_norm import layer_norm, residual_layer_norm
from mindllm_engine.kernels.rms_norm import deepnorm_residual, rms_norm

OPERATORS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "rms_norm": lambda x, w: rms_norm(x, w, 1e-5),
    "deepnorm_residual": lambda x, w: deepnorm_residual(x, x, w, 1.7, 1e-5),
    "layer_norm": lambda x, w: layer_norm(x, w, w, 1e-5),
    "residual_layer_norm": lambda x, w: residual_layer_norm(x, x, w, w, 1e-5),
    "bias_gelu": bias_gelu,
}


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("x", "weight"), [((3, 0), (0,)), ((), ()), ((), (1,))])
def test_are_refused(name: str, x: tuple[int, ...], weight: tuple[int, ...], device: str) -> None:
    with pytest.raises(ValueError, match="last dimension"):
        OPERATORS[name](torch.zeros(x, device=device), torch.zeros(weight, device=device))
