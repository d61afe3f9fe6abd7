"""The look-up of compiled kernels against Triton's own rule of what may share machine code."""

from typing import Any

import torch
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from mindllm_engine.kernels.launch import _specialisation


def tritons_rule(arg: Any) -> Any:
    return native_specialize_impl(CUDABackend(GPUTarget("cuda", 90, 32)), arg, False, True, True)


def test_arguments_that_share_machine_code_are_alike_to_triton() -> None:
    bounds = (2**31, 2**32, 2**62, -(2**31), -(2**32))
    integers = [*range(-40, 70), *(bound + step for bound in bounds for step in (-17, -16, -1, 0, 1, 15, 16))]
    memory = torch.zeros(256, dtype=torch.uint8)
    starts = range(0, 40, 4)
    views = [memory[start : start + 64].view(dtype) for dtype in (torch.bfloat16, torch.float32) for start in starts]
    rules: dict[Any, tuple[Any, Any]] = {}
    for arg in (*integers, 0.0, 1.0, 2.5, *views, *(torch.zeros(4).to(d) for d in (torch.int64, torch.int32))):
        (key,) = _specialisation((arg,))
        other, rule = rules.setdefault(key, (arg, tritons_rule(arg)))
        assert tritons_rule(arg) == rule, f"{arg} would run what was compiled for {other}"
