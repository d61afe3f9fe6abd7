"""Which implementation of an operator runs: its Triton kernels or its PyTorch reference.

One choice for the whole process, made by the config key `kernels`; every public operator asks `use_triton`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from mindllm_engine.errors import ConfigError

KernelChoice = Literal["auto", "triton", "reference"]

_choice: KernelChoice = "auto"


def select_kernels(choice: KernelChoice) -> None:
    """Choose for all operators of this process: `auto` is Triton for tensors on a GPU and the reference elsewhere.

    Raises:
        ConfigError: `triton` where there is neither a GPU nor Triton's interpreter.
    """
    global _choice
    if choice != "reference" and find_spec("triton") is None and (choice == "triton" or torch.cuda.is_available()):
        raise ConfigError(f"kernels: {choice} needs the package triton, which is not installed; use reference")
    if choice == "triton" and not torch.cuda.is_available() and not interpreted():
        raise ConfigError(
            "kernels: triton needs a GPU; without one use auto or reference, or set TRITON_INTERPRET=1 to interpret "
            "the kernels (slow: for tests)"
        )
    _choice = choice


def selected_kernels() -> KernelChoice:
    """The choice in force."""
    return _choice


@contextmanager
def kernels_on_meta() -> Iterator[None]:
    """Within, operators on meta tensors take the path of their Triton kernels, where `launch` runs nothing: the shapes
    and the allocations of a GPU, without one."""
    global _choice
    before, _choice = _choice, "triton"
    try:
        yield
    finally:
        _choice = before


def use_triton(x: Tensor) -> bool:
    """Whether an operator on `x` runs its Triton kernels."""
    if _choice == "triton":
        return not x.is_cpu or interpreted()  # beside a GPU, what is offloaded lies on the CPU
    return x.is_cuda and _choice == "auto"


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on the CPU (TRITON_INTERPRET=1, read when triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
