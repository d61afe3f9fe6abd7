"""A model's parameters and gradients as views into flat buffers, so that whatever concerns all of them is one
operation.

The layout is arithmetic on names and sizes: matrices first (they decay), then vectors (they do not), each in the
order of `named_parameters()`. Gradients of every micro-batch are added in fp32 to one main gradient, which data
parallelism reduces, clipping measures and AdamW reads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in the flat buffers."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return self.start + size


def decays(shape: tuple[int, ...]) -> bool:
    """Weight decay applies to matrices (embeddings included) and not to norms and biases."""
    return len(shape) >= 2


def layout(shapes: dict[str, tuple[int, ...]]) -> tuple[list[Slot], int]:
    """Slots for parameters of these shapes, and the number of elements at the front that decay."""
    slots: list[Slot] = []
    start = 0
    decayed = 0
    for matrices in (True, False):
        for name, shape in shapes.items():
            if decays(shape) == matrices:
                slot = Slot(name, shape, start)
                slots.append(slot)
                start = slot.stop
        if matrices:
            decayed = start
    return slots, decayed


class FlatParameters:
    """Takes over the storage of `model`'s parameters and gradients.

    Gradients reach the main gradient in two ways. An operator that can adds straight to `parameter.main_grad`, which is
    the parameter's view into `grads`, and returns no gradient for it. Any other gradient is added once autograd has
    finished it, and then let go (see `add_gradients_to_main`). A tied parameter may be used in both ways.

    Parameters follow each other without gaps. Where `hidden_size` is a multiple of 64, as in every network here, each
    begins on a multiple of 64 elements, which 128-bit accesses want.

    Attributes:
        params: (elements,) in the model's dtype; each parameter is a view into it.
        grads: (elements,) fp32, the main gradient.
        slots: where each parameter lies, by name; a tied parameter lies once, under its first name.
        decayed: elements [0, decayed) are matrices.
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        dtypes = {parameter.dtype for parameter in named.values()}
        assert len(dtypes) == 1, f"one dtype expected, found {dtypes}"
        self.slots, self.decayed = layout({name: tuple(parameter.shape) for name, parameter in named.items()})
        first = next(iter(named.values()))
        self.params = torch.empty(self.slots[-1].stop, dtype=first.dtype, device=first.device)
        self.grads = torch.zeros(self.slots[-1].stop, dtype=torch.float32, device=first.device)
        for slot in self.slots:
            parameter = named[slot.name]
            self.params[slot.start : slot.stop] = parameter.detach().flatten()
            parameter.data = self.params[slot.start : slot.stop].view(slot.shape)
            main_grad = self.grads[slot.start : slot.stop].view(slot.shape)
            parameter.grad = None  # of an earlier backward: the next one would add it to the main gradient
            parameter.main_grad = main_grad  # type: ignore[attr-defined]
            add_gradients_to_main(parameter, main_grad)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat buffer of this layout by parameter name, in the parameters' shapes."""
        return {slot.name: flat[slot.start : slot.stop].view(slot.shape) for slot in self.slots}


def add_gradients_to_main(parameter: nn.Parameter, main_grad: Tensor) -> None:
    """Each time backward has finished `parameter.grad`, add it to `main_grad` (fp32) and let it go."""

    def accumulate(parameter: Tensor) -> None:
        if parameter.grad is not None:  # None where all operators have added theirs to the main gradient
            main_grad.add_(parameter.grad)
            parameter.grad = None

    parameter.register_post_accumulate_grad_hook(accumulate)
