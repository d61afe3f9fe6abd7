"""AdamW with fp32 master weights over slices of flat buffers, and clipping by global norm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.adamw import adamw, join_master, split_master
from mindllm_engine.kernels.square_norm import square_norm
from mindllm_engine.optim.host_transfer import HostTransfer
from mindllm_engine.optim.schedules import ScheduleConfig


@dataclass(frozen=True)
class ParameterSlice:
    """A part of the flat buffers that one update covers.

    Attributes:
        params: (n,) in the model's dtype.
        grads: (n,) fp32.
        decays: whether weight decay applies to it.
        lr_scale: what the learning rate is multiplied by.
    """

    params: Tensor
    grads: Tensor
    decays: bool
    lr_scale: float = 1.0


@dataclass
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 3e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices, a step, times the learning rate: that of the parameter, which its network may scale
    (MiniCPM)."""
    clip_grad_norm: float = 1.0
    """Gradients are scaled so that their global L2 norm is at most this; 0 turns clipping off."""
    master: Literal["fp32", "bf16_and_bits"] = "fp32"
    """How the fp32 master weights are kept: in a copy of their own, or as the bf16 parameters and 16 extra bits, which
    takes 2 bytes a parameter less (`train.precision` bf16 only). Checkpoints are the same either way."""
    offload: bool = False
    """Keep master weights and moments in the host's memory, and update on the CPU. Takes 12 bytes a parameter of a
    rank's slices off the GPU, for 6 a step over the bus and the CPU's time; pays where memory is what is short."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate moves."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"optim.lr: {self.lr} must be a finite number above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas: {list(self.betas)} must each lie in [0, 1)")
        for name in ("weight_decay", "clip_grad_norm", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name}: {getattr(self, name)} must be a finite number of at least 0")
        self.schedule.validate(self.lr)

    def build(self, slices: Sequence[ParameterSlice]) -> "AdamW":
        """The optimizer over these slices, its master weights copied from them."""
        return AdamW(slices, self)

    def clip(self, grad_scale: Tensor, grad_norm: Tensor) -> Tensor:
        """() fp32: what to multiply the gradient by so that its norm, `grad_norm` after `grad_scale`, keeps within
        `clip_grad_norm`."""
        if self.clip_grad_norm == 0:
            return grad_scale
        return grad_scale * (self.clip_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)


class AdamW:
    """Optimizer state of some slices of the flat buffers, and their updates.

    Attributes:
        master: for each slice (n,) the master weights in fp32; or int16, the bits of them that the bf16 parameters
            leave out (see `kernels.adamw.split_master`).
        m, v: for each slice (n,) fp32, the moments.
        updates: steps done.

    With `offload` all of these lie in the host's memory (see `host_transfer`).
    """

    def __init__(self, slices: Sequence[ParameterSlice], config: OptimConfig) -> None:
        self.device_slices = slices
        self.transfer: HostTransfer | None = None
        if config.offload:
            self.transfer = HostTransfer([part.params for part in slices], [part.grads for part in slices])
            slices = [
                replace(part, params=params, grads=grads)
                for params, grads, part in zip(self.transfer.params, self.transfer.grads, slices, strict=True)
            ]
        self.slices = slices
        self.config = config
        self.is_split = config.master == "bf16_and_bits"
        assert not self.is_split or all(part.params.dtype == torch.bfloat16 for part in slices)
        params = [part.params for part in slices]
        if self.is_split:  # the parameters are the master weights until the first step
            self.master = [torch.zeros_like(x, dtype=torch.int16) for x in params]
        else:
            self.master = [x.to(torch.float32, copy=True) for x in params]
        self.m = [torch.zeros_like(x, dtype=torch.float32) for x in params]
        self.v = [torch.zeros_like(x) for x in self.m]
        self.updates = 0

    def square_norm(self) -> Tensor:
        """() fp32: the sum of the squares of all slices' gradients."""
        return torch.stack([square_norm(part.grads) for part in self.device_slices]).sum()

    def update(self, index: int, lr: float, grad_scale: Tensor) -> None:
        """Update one slice from its gradient, as step number `updates`. Waits for the device only with `offload`.

        Args:
            lr: learning rate of this step, before the slice's own scale.
            grad_scale: () fp32 tensor; the gradient is multiplied by it.
        """
        if self.transfer is not None:
            grad_scale = self.transfer.bring_down(index, grad_scale)
        part = self.slices[index]
        adamw(
            part.params,
            self.master[index],
            part.grads,
            self.m[index],
            self.v[index],
            lr=lr * part.lr_scale,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            decayed=part.params.numel() if part.decays else 0,
            step=self.updates,
            grad_scale=grad_scale,
        )
        if self.transfer is not None:
            self.transfer.bring_up(index)

    def master_weights(self, index: int) -> Tensor:
        """(n,) the fp32 master weights of a slice: themselves, or made from their two parts."""
        return join_master(self.slices[index].params, self.master[index]) if self.is_split else self.master[index]

    def write(self, index: int, first: int, master: Tensor, m: Tensor, v: Tensor) -> None:
        """Take over fp32 state, each (k,), for elements [first, first + k) of a slice, and round the master weights
        into the parameters."""
        part = slice(first, first + master.numel())
        master = master.to(self.m[index])
        params = self.slices[index].params
        if self.is_split:
            params[part], self.master[index][part] = split_master(master)
        else:
            self.master[index][part] = master
            params[part] = master
        self.m[index][part] = m
        self.v[index][part] = v
        if self.transfer is not None:
            self.transfer.bring_up(index)
