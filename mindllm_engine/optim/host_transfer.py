"""Slices of the flat buffers as they lie in the host's memory, for an optimizer whose state is there (`optim.offload`).

    GPU    gradients of slice 0 | 1 | 2 ...                  parameters 0 | 1 ... up, on the stream that asked
    CPU        wait for 0, AdamW on 0 | AdamW on 1 ...

All gradients begin to travel, on a stream of their own, when the first slice is asked for, in the order in which the
last step asked for them; parameters go up as each
slice is done, so that copies both ways, AdamW and the all-gathers that follow run side by side. The host waits once a
step for the one number that clipping gives, and for gradients that have not come down when it wants them.

Bytes a parameter of a slice over the bus a step: 4 down, and an element of the model's dtype up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class HostTransfer:
    """Copies of some slices' parameters and gradients in the host's memory, pinned beside a GPU.

    On a CPU the copies are made as well, and nothing has to be waited for.

    Args:
        params, grads: the slices on the device, (n,) each.

    Attributes:
        params, grads: (n,) each, on the host, of the same dtypes.
    """

    def __init__(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        self.device_params = params
        self.device_grads = grads
        self.stream = torch.cuda.Stream(params[0].device) if params[0].is_cuda else None
        self.params = [self.beside(x).copy_(x) for x in params]
        self.grads = [self.beside(x) for x in grads]
        self.arrivals: dict[int, torch.cuda.Event] = {}
        self.grad_scale: Tensor | None = None
        self.order = list(range(len(params)))
        self.asked: list[int] = []

    def beside(self, x: Tensor) -> Tensor:
        """Memory on the host for a slice."""
        return torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=self.stream is not None)

    def bring_down(self, index: int, grad_scale: Tensor) -> Tensor:
        """Wait for a slice's gradient to be in `grads`. Each slice is asked for once a step.

        Args:
            grad_scale: () on the device, the same in all calls of a step.

        Returns () on the host: `grad_scale`.
        """
        if self.grad_scale is None:
            self.grad_scale = self.begin(grad_scale)
        if self.stream is not None:
            self.arrivals[index].synchronize()
        scale = self.grad_scale
        self.asked.append(index)
        if len(self.asked) == len(self.params):  # the step is over, and the next one will be in the same order
            self.grad_scale, self.order, self.asked = None, self.asked, []
        return scale

    def begin(self, grad_scale: Tensor) -> Tensor:
        """Start all gradients on their way. Returns `grad_scale` on the host, when it is there."""
        if self.stream is None:
            for index in self.order:
                self.grads[index].copy_(self.device_grads[index])
            return grad_scale.clone()
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            scale = grad_scale.to("cpu")  # waits, before gigabytes are in its way
            for index in self.order:
                self.grads[index].copy_(self.device_grads[index], non_blocking=True)
                self.arrivals[index] = self.stream.record_event()
        return scale

    def bring_up(self, index: int) -> None:
        """Begin to copy a slice's parameters to the device, before what its current stream does next.

        They may be written on the host again once a gradient that was computed with them has come down.
        """
        self.device_params[index].copy_(self.params[index], non_blocking=True)
