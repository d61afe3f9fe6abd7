"""Where the kernels of these tests run: on the GPU, or in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch

from mindllm_engine.kernels import rows
from mindllm_engine.kernels.backend import select_kernels


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def triton_kernels() -> Iterator[None]:
    """Every operator runs its Triton kernels."""
    select_kernels("triton")
    yield
    select_kernels("auto")


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Persistent kernels get two programs a multiprocessor's share, so that each takes many rows."""
    monkeypatch.setattr(rows, "multiprocessors", lambda device: 1)


@pytest.fixture(params=["reference", "triton"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every operator runs its PyTorch reference, then its Triton kernels."""
    select_kernels(request.param)
    yield request.param
    select_kernels("auto")
