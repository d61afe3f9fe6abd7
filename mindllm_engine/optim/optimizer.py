"""AdamW with fp32 master weights over flat buffers: decay on matrices, none on vectors, gradients clipped by global
norm."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.adamw import adamw
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
    """Optimizer state of a whole model: `master`, `m` and `v`, each (elements,) fp32 in the layout of `flat`."""

    def __init__(self, flat: FlatParameters, config: OptimConfig) -> None:
        self.flat = flat
        self.config = config
        self.master = flat.params.float()
        if self.master is flat.params:  # `.float()` of fp32 returns its input
            self.master = flat.params.clone()
        self.m = torch.zeros_like(self.master)
        self.v = torch.zeros_like(self.master)
        self.updates = 0

    def step(self, lr: float, grad_scale: Tensor) -> Tensor:
        """One update from the main gradient, which is then cleared. Never waits for the device.

        Args:
            lr: learning rate of this step.
            grad_scale: () fp32 tensor; the gradient is multiplied by it before its norm is taken.

        Returns:
            () fp32: the global norm of the scaled gradient before clipping.
        """
        grad_norm = torch.linalg.vector_norm(self.flat.grads) * grad_scale
        if self.config.clip_grad_norm > 0:
            grad_scale = grad_scale * (self.config.clip_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)
        self.updates += 1
        ends = (0, self.flat.decayed, self.master.numel())
        for start, stop, decay in ((ends[0], ends[1], self.config.weight_decay), (ends[1], ends[2], 0.0)):
            part = slice(start, stop)
            adamw(
                self.flat.params[part],
                self.master[part],
                self.flat.grads[part],
                self.m[part],
                self.v[part],
                lr=lr,
                betas=self.config.betas,
                eps=self.config.eps,
                weight_decay=decay,
                step=self.updates,
                grad_scale=grad_scale,
            )
        self.flat.grads.zero_()
        return grad_norm

    def write_parameters(self) -> None:
        """Round the master weights into the model's parameters (after loading a checkpoint)."""
        self.flat.params.copy_(self.master)
