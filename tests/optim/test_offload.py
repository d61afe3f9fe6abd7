"""AdamW whose state lies in the host's memory: the same bits as beside the parameters, by real copies."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from mindllm_engine.optim.optimizer import AdamW, OptimConfig, ParameterSlice

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [700, 64, 129]
ORDERS = [[0, 1, 2], [2, 0, 1], [1, 2, 0]]  # the first step meets another than it expects


def optimizer(dtype: torch.dtype, master: Literal["fp32", "bf16_and_bits"], offload: bool) -> AdamW:
    generator = torch.Generator().manual_seed(0)
    slices = [
        ParameterSlice(
            torch.randn(size, generator=generator).to(DEVICE, dtype),
            torch.zeros(size, device=DEVICE),
            decays=size > 100,
        )
        for size in SIZES
    ]
    return OptimConfig(master=master, offload=offload).build(slices)


def step(adamw: AdamW, number: int, grad_scale: float = 0.5) -> Tensor:
    """One update of all slices from random gradients; the square norm."""
    generator = torch.Generator().manual_seed(100 + number)
    for part in adamw.device_slices:
        part.grads.copy_(torch.randn(part.grads.shape, generator=generator))
    square_norm = adamw.square_norm()
    adamw.updates += 1
    for index in ORDERS[number % len(ORDERS)]:
        adamw.update(index, 1e-2, torch.tensor(grad_scale, device=DEVICE))
    for part in adamw.device_slices:
        part.grads.zero_()
    return square_norm


def state(adamw: AdamW) -> list[Tensor]:
    parts = [part.params for part in adamw.device_slices]
    parts += [adamw.master_weights(index) for index in range(len(SIZES))]
    return [x.cpu() for x in (*parts, *adamw.m, *adamw.v)]


# On a GPU the kernels and the CPU's operators round differently in the last place.
@pytest.mark.skipif(DEVICE == "cuda", reason="compares bits, of the same implementation")
@pytest.mark.parametrize(
    ("dtype", "master"), [(torch.float32, "fp32"), (torch.bfloat16, "fp32"), (torch.bfloat16, "bf16_and_bits")]
)
def test_offloaded_updates_are_the_same_bits(dtype: torch.dtype, master: Literal["fp32", "bf16_and_bits"]) -> None:
    here, offloaded = (optimizer(dtype, master, offload) for offload in (False, True))
    for number in range(4):
        assert torch.equal(step(here, number), step(offloaded, number))
        assert all(torch.equal(a, b) for a, b in zip(state(here), state(offloaded), strict=True))
    start = optimizer(dtype, master, offload=False)
    assert not torch.equal(state(start)[0], state(offloaded)[0])


def test_what_is_offloaded_lies_in_the_hosts_memory() -> None:
    adamw = optimizer(torch.bfloat16, "fp32", offload=True)
    step(adamw, 0)
    everything = [*adamw.master, *adamw.m, *adamw.v]
    on_device = {part.params.data_ptr() for part in adamw.device_slices}
    assert all(x.device.type == "cpu" for x in everything)
    assert all(part.params.data_ptr() not in on_device for part in adamw.slices)


def test_state_that_is_written_reaches_the_parameters() -> None:
    adamw = optimizer(torch.bfloat16, "fp32", offload=True)
    master = torch.linspace(-1, 1, 50)
    adamw.write(0, 20, master, master * 2, master.square())
    assert torch.equal(adamw.device_slices[0].params[20:70].cpu(), master.bfloat16())
    step(adamw, 0)  # goes on from there
    change = (adamw.master_weights(0)[20:70] - master).abs()
    assert 0 < change.max() < 0.05
    untouched = optimizer(torch.bfloat16, "fp32", offload=False)
    assert torch.equal(adamw.device_slices[1].params.cpu() != untouched.slices[1].params.cpu(), torch.ones(64) > 0)
