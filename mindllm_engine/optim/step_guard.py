"""Which steps to skip: those whose loss or gradient norm is not finite, or far above what it was of late.

After OLMo-core's rule (its SkipStepOptimizer: 6 sigma over the last 128 steps, judged from half of them on), with four
departures. Only what lies above counts: a loss that falls quickly is no fault. What was skipped does not enter the
window, or a few bad steps would make the next ones look normal. The deviation is taken to be at least `DEVIATION_FLOOR`
of the mean: where all losses are nearly equal (one repeated batch, a rate near 0) rounding would be six sigma of them.
And the window can be emptied where the data changes, since a harder mixture is no fault either.

All of it happens on the device: nothing here waits for it but `state`.
"""

import torch
from torch import Tensor

WINDOW = 128
# Steps that must be in the window before one is judged by it.
ENOUGH = WINDOW // 2
# At 6 sigma a value up to 1.5 % above the mean always passes.
DEVIATION_FLOOR = 0.0025


class StepGuard:
    """Judges each step once, in order; all ranks hold the same one, since they see the same numbers.

    Args:
        sigma: a step is skipped whose loss or gradient norm exceeds mean + `sigma` standard deviations of the window; 0
            skips only what is not finite.

    Attributes:
        window: (2, WINDOW) fp64, losses and gradient norms of the newest accepted steps, a ring.
        counts: (3,) int64: steps in the window or pushed out of it, steps skipped in all, steps skipped in a row.
    """

    def __init__(self, sigma: float, device: torch.device) -> None:
        self.sigma = sigma
        self.window = torch.zeros(2, WINDOW, dtype=torch.float64, device=device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)
        self.places = torch.arange(WINDOW, device=device)

    def __call__(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """() bool: whether to skip the step with this mean loss and gradient norm, both () fp32."""
        values = torch.stack((loss, grad_norm)).double()  # (2,)
        skipped = ~values.isfinite().all()
        accepted = self.counts[0]
        if self.sigma > 0:
            skipped |= (values > self.limits(accepted)).any() & (accepted >= ENOUGH)
        written = (self.places == accepted % WINDOW) & ~skipped  # (WINDOW,)
        self.window.copy_(torch.where(written, values[:, None], self.window))
        counted = skipped.long()
        self.counts.copy_(torch.stack((accepted + 1 - counted, self.skipped + counted, (self.in_a_row + 1) * counted)))
        return skipped

    def limits(self, accepted: Tensor) -> Tensor:
        """(2,) fp64: mean + sigma standard deviations of the losses and of the gradient norms in the window."""
        inside = self.places < accepted
        count = accepted.clamp(max=WINDOW)
        mean = (self.window * inside).sum(dim=1) / count
        squares = ((self.window - mean[:, None]).square() * inside).sum(dim=1)
        deviation = (squares / (count - 1)).sqrt()
        return mean + self.sigma * torch.maximum(deviation, DEVIATION_FLOOR * mean.abs())

    @property
    def skipped(self) -> Tensor:
        """() int64: steps skipped so far."""
        return self.counts[1]

    @property
    def in_a_row(self) -> Tensor:
        """() int64: steps skipped since the last one accepted."""
        return self.counts[2]

    def forget(self) -> None:
        """Empty the window: the data changes, and what was normal tells nothing of what will be."""
        self.counts[0].zero_()

    def state(self) -> list[float]:
        """Counts and window for a checkpoint, exact. Waits for the device."""
        return [*self.counts.tolist(), *self.window.flatten().tolist()]

    def load_state(self, state: list[float]) -> None:
        """Take over what `state` gave; an empty list stands for a guard that has seen nothing."""
        values = torch.tensor(state or [0.0] * (3 + 2 * WINDOW), dtype=torch.float64)
        self.counts.copy_(values[:3])
        self.window.copy_(values[3:].view(2, WINDOW))
