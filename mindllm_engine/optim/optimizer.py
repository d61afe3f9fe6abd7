"""AdamW with fp32 master weights over flat buffers: decay on matrices, none on vectors, gradients clipped by global
norm."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.adamw import adamw, join_master, split_master
from mindllm_engine.kernels.square_norm import square_norm
from mindllm_engine.optim.flat_parameters import FlatParameters
from mindllm_engine.optim.schedules import ScheduleConfig


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
    """Decoupled decay of matrices, a step, times the learning rate."""
    clip_grad_norm: float = 1.0
    """Gradients are scaled so that their global L2 norm is at most this; 0 turns clipping off."""
    master: Literal["fp32", "bf16_and_bits"] = "fp32"
    """How the fp32 master weights are kept: in a copy of their own, or as the bf16 parameters and 16 extra bits, which
    takes 2 bytes a parameter less (`train.precision` bf16 only). Checkpoints are the same either way."""
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

    def build(self, flat: FlatParameters) -> "AdamW":
        """The optimizer over these parameters, its master weights copied from them."""
        return AdamW(flat, self)


class AdamW:
    """Optimizer state of a whole model in the layout of `flat`.

    Attributes:
        master: (elements,) the master weights in fp32; or int16, the bits of them that the bf16 parameters leave out
            (see `kernels.adamw.split_master`).
        m, v: (elements,) fp32, the moments.
        updates: steps done.
    """

    def __init__(self, flat: FlatParameters, config: OptimConfig) -> None:
        self.flat = flat
        self.config = config
        self.is_split = config.master == "bf16_and_bits"
        assert not self.is_split or flat.params.dtype == torch.bfloat16
        if self.is_split:  # the parameters are the master weights until the first step
            self.master = torch.zeros_like(flat.params, dtype=torch.int16)
        else:
            self.master = flat.params.to(torch.float32, copy=True)
        self.m = torch.zeros_like(flat.params, dtype=torch.float32)
        self.v = torch.zeros_like(self.m)
        self.updates = 0

    def step(self, lr: float, grad_scale: Tensor) -> Tensor:
        """One update from the main gradient, which is then cleared. Never waits for the device.

        Args:
            lr: learning rate of this step.
            grad_scale: () fp32 tensor; the gradient is multiplied by it before its norm is taken.

        Returns:
            () fp32: the global norm of the scaled gradient before clipping.
        """
        grad_norm = square_norm(self.flat.grads).sqrt() * grad_scale
        if self.config.clip_grad_norm > 0:
            grad_scale = grad_scale * (self.config.clip_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)
        self.updates += 1
        adamw(
            self.flat.params,
            self.master,
            self.flat.grads,
            self.m,
            self.v,
            lr=lr,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            decayed=self.flat.decayed,
            step=self.updates,
            grad_scale=grad_scale,
        )
        self.flat.grads.zero_()
        return grad_norm

    def master_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The fp32 master weights by parameter name, one parameter at a time, in the parameters' shapes."""
        for slot in self.flat.slots:
            part = slice(slot.start, slot.stop)
            weights = self.master[part]
            if self.is_split:
                weights = join_master(self.flat.params[part], weights)
            yield slot.name, weights.view(slot.shape)

    def set_master_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over fp32 master weights, given by parameter name, and round them into the model's parameters."""
        for slot in self.flat.slots:
            part = slice(slot.start, slot.stop)
            master = weights[slot.name].flatten().to(self.m)
            if self.is_split:
                self.flat.params[part], self.master[part] = split_master(master)
            else:
                self.master[part] = master
                self.flat.params[part] = master
