"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore.

Steps count from 0; step s uses `learning_rate(config, peak, s, total)`. Sources: linear warm-up and decay, MindLLM
section 3 (arXiv 2310.15777); WSD (warm-up, stable, decay), MiniCPM section 4 (arXiv 2404.06395). Its decay over about
10 % of the steps is linear here by default of the field, and exponential in the paper (section 6.2): 0.5^((s - S) / T)
from step S on. The paper's T is a half-life; here it follows from where the decay ends, its steps over
log2(peak / min_lr).
"""

import math
from dataclasses import dataclass
from typing import Literal

from mindllm_engine.errors import ConfigError


@dataclass
class ScheduleConfig:
    """How the learning rate moves between 0, its peak (`optim.lr`) and `min_lr`."""

    kind: Literal["constant", "linear", "cosine", "wsd"] = "linear"
    """Shape after the warm-up: constant, linear or cosine to `min_lr` at the last step, or wsd."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0 to the peak."""
    min_lr: float = 0.0
    """Learning rate at the end of a linear, cosine or wsd schedule."""
    decay_fraction: float = 0.1
    """Share of all steps that wsd spends decaying at the end."""
    decay_shape: Literal["linear", "exponential"] = "linear"
    """How wsd decays: by equal steps, or by equal factors, which needs a `min_lr` above 0."""

    def validate(self, peak: float) -> None:
        """Raises `ConfigError` naming the first impossible value. A run shorter than its warm-up is allowed."""
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.schedule.warmup_steps: {self.warmup_steps} must not be negative")
        if not 0 <= self.min_lr <= peak:
            raise ConfigError(f"optim.schedule.min_lr: {self.min_lr} must lie between 0 and optim.lr = {peak}")
        if not 0 < self.decay_fraction <= 1:
            raise ConfigError(f"optim.schedule.decay_fraction: {self.decay_fraction} must lie in (0, 1]")
        if self.decay_shape == "exponential" and (self.kind != "wsd" or self.min_lr == 0):
            raise ConfigError(
                "optim.schedule.decay_shape: exponential needs optim.schedule.kind wsd and a min_lr above 0"
            )


def learning_rate(config: ScheduleConfig, peak: float, step: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 0) in a run of `total_steps`."""
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return peak
    if config.kind == "wsd":
        decay_start = max(config.warmup_steps, total_steps - round(config.decay_fraction * total_steps))
    else:
        decay_start = config.warmup_steps
    # The last step (total_steps - 1) lands on min_lr; the first after decay_start is the first below the peak.
    progress = min(1.0, max(0.0, (step - decay_start + 1) / max(1, total_steps - decay_start)))
    if config.kind == "wsd" and config.decay_shape == "exponential":
        return peak * (config.min_lr / peak) ** progress
    if config.kind == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    return peak + (config.min_lr - peak) * progress
