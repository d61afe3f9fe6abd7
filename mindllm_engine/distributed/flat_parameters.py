"""A model's parameters that train, and their gradients, as views into flat buffers, so that whatever concerns all of
them is one operation. Frozen ones (`requires_grad` False) stay where they are.

Gradients of every micro-batch are added in fp32 to one main gradient, which data parallelism reduces, clipping measures
and AdamW reads.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mindllm_engine.distributed.layout import Layout, decays
from mindllm_engine.kernels.rows import current_main_grad


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name; a tied one stands once, under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def learning_rate_scales(model: nn.Module) -> dict[str, float]:
    """What the learning rate of each trained parameter is multiplied by: what its network says, otherwise 1."""
    scaled: dict[str, float] = getattr(model, "learning_rate_scales", dict)()
    return {name: scaled.get(name, 1.0) for name in trained_parameters(model)}


class FlatParameters:
    """Takes over the storage of `model`'s trained parameters and their gradients.

    Gradients reach the main gradient in two ways. An operator that can adds straight to `parameter.main_grad`, which is
    the parameter's view into `grads`, and returns no gradient for it. Any other gradient is added once autograd has
    finished it, and then let go. A tied parameter may be used in both ways. The first of a step overwrites what the
    last step left, which saves writing zeros and reading them again: `main_grad_is_old` says that it is still there.

    Args:
        layout: of the model's trained parameters by name.
        finished: called with a parameter's name each time backward has finished its gradient.

    Attributes:
        params: (layout.elements,) in the model's dtype; each parameter is a view into it; padding is 0.
        grads: (layout.elements,) fp32, the main gradient.
    """

    def __init__(self, model: nn.Module, layout: Layout, finished: Callable[[str], None]) -> None:
        named = trained_parameters(model)
        dtypes = {parameter.dtype for parameter in named.values()}
        assert len(dtypes) == 1, f"one dtype expected, found {dtypes}"
        first = next(iter(named.values()))
        self.layout = layout
        self.params = torch.zeros(layout.elements, dtype=first.dtype, device=first.device)
        self.grads = torch.zeros(layout.elements, dtype=torch.float32, device=first.device)
        params, grads = self.views(self.params), self.views(self.grads)
        for name, parameter in named.items():
            params[name].copy_(parameter.detach())
            parameter.data = params[name]
            parameter.grad = None  # of an earlier backward: the next one would add it to the main gradient
            parameter.main_grad = grads[name]  # type: ignore[attr-defined]
            parameter.main_grad_is_old = False  # type: ignore[attr-defined]
            add_gradients_to_main(parameter, grads[name], name, finished)
        self.matrices = [parameter for parameter in named.values() if decays(parameter.shape)]
        vectors = [slot.start for slot in layout.slots if not decays(slot.shape)]
        self.vectors_start = min(vectors, default=layout.elements)

    def begin_step(self) -> None:
        """All gradients count as 0 from here on. Those of vectors are set to it at once, in one operation."""
        self.grads[self.vectors_start :].zero_()
        for parameter in self.matrices:
            parameter.main_grad_is_old = True  # type: ignore[attr-defined]

    def clear_old_gradients(self) -> None:
        """Set the main gradients to 0 that this step has not touched."""
        for parameter in self.matrices:
            current_main_grad(parameter)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat buffer of this layout by parameter name, in the parameters' shapes."""
        return {slot.name: flat[slot.start : slot.stop].view(slot.shape) for slot in self.layout.slots}


def add_gradients_to_main(
    parameter: nn.Parameter, main_grad: Tensor, name: str, finished: Callable[[str], None]
) -> None:
    """Each time backward has finished `parameter.grad`, add it to `main_grad` (fp32), let it go, and say so.

    An operator that adds to the main gradient asks for it in forward (`kernels.rows.main_grad`), so before any of this.
    """

    def accumulate(parameter: Tensor) -> None:
        if parameter.grad is not None:  # None where all operators have added theirs to the main gradient
            if parameter.main_grad_is_old:  # type: ignore[attr-defined]
                main_grad.copy_(parameter.grad)
                parameter.main_grad_is_old = False  # type: ignore[attr-defined]
            else:
                main_grad.add_(parameter.grad)
            parameter.grad = None
        finished(name)

    parameter.register_post_accumulate_grad_hook(accumulate)
