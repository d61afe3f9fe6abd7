"""The batch size that reaches a loss on the fewest tokens, and the law that joins these optima (MiniCPM, section 3.2).

A curve of held-out loss for each batch size gives the tokens after which it passes a level. Over the logarithm of the
batch size their logarithm is fitted by a parabola, whose minimum is the optimum at that level. It is one only where the
grid brackets it: the fewest tokens must not be at either end of the batch sizes that pass the level.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindllm_engine.studies.seeds import Estimate, mean_estimate

LEVELS = 8
# Batch sizes that a parabola needs.
LEAST_BATCHES = 3
# Optima that a seed's line needs.
LEAST_OPTIMA = 3


@dataclass(frozen=True)
class Curve:
    """Held-out loss along a run: tokens trained on, rising and above 0, and nats a token."""

    tokens: Sequence[float]
    loss: Sequence[float]

    def passes(self, level: float) -> float | None:
        """Tokens after which the loss first is at `level`, between evaluations linear in log tokens; None if it never
        is, or was so at the first evaluation."""
        for place, loss in enumerate(self.loss):
            if loss <= level:
                if place == 0:
                    return None
                before = self.loss[place - 1]
                share = (before - level) / (before - loss)
                return float(self.tokens[place - 1] * (self.tokens[place] / self.tokens[place - 1]) ** share)
        return None


@dataclass(frozen=True)
class Optimum:
    """The best batch size at a level of loss.

    Attributes:
        level: nats a token.
        passed: batch size -> tokens to the level, both in tokens.
        batch: the optimum, in tokens; None where the grid does not bracket it.
        reason: why it does not.
    """

    level: float
    passed: Mapping[float, float]
    batch: float | None
    reason: str


@dataclass(frozen=True)
class BatchLaw:
    """B = coefficient L^-exponent over the seeds.

    Attributes:
        exponent: with Student's interval over seeds.
        coefficient: its logarithm's mean over seeds, as a number of tokens.
    """

    exponent: Estimate
    coefficient: float


def levels_of(curves: Mapping[float, Curve]) -> list[float]:
    """Losses at which batch sizes can be compared, from high to low: passed by LEAST_BATCHES curves at least, and by
    none before its first evaluation; empty where there are none."""
    if len(curves) < LEAST_BATCHES:
        return []
    low = sorted(min(curve.loss) for curve in curves.values())[LEAST_BATCHES - 1]
    high = min(curve.loss[0] for curve in curves.values())
    if not low < high:
        return []
    # Not the ends themselves: there the comparison hangs on one evaluation.
    inner = np.geomspace(high, low, LEVELS + 2)[1:-1]
    return [float(level) for level in inner]


def optimum_at(level: float, curves: Mapping[float, Curve]) -> Optimum:
    """The optimum over curves by batch size in tokens."""
    passed = {batch: tokens for batch, curve in sorted(curves.items()) if (tokens := curve.passes(level)) is not None}
    if len(passed) < LEAST_BATCHES:
        return Optimum(level, passed, None, f"{len(passed)} batch sizes pass it, and {LEAST_BATCHES} are needed")
    batches = list(passed)
    best = min(passed, key=lambda batch: passed[batch])
    if best in (batches[0], batches[-1]):
        side = "smallest" if best == batches[0] else "largest"
        return Optimum(level, passed, None, f"at the edge of the grid: the {side} batch that passes it is best")
    logs = np.log(batches)
    curvature, slope, _ = np.polyfit(logs, np.log(list(passed.values())), 2)
    optimum = -slope / (2 * curvature) if curvature > 0 else math.nan
    if not logs[0] < optimum < logs[-1]:
        return Optimum(level, passed, None, "the parabola has no minimum within the grid")
    return Optimum(level, passed, float(np.exp(optimum)), "")


def fit_batch_law(optima: Mapping[int, Sequence[Optimum]]) -> BatchLaw | None:
    """A line through log optimum over log loss for each seed; None where no seed has enough optima.

    Levels of one run share its noise, and so do not count as independent: only seeds do.

    Args:
        optima: of each seed, of all its networks.
    """
    from scipy.stats import linregress

    exponents, intercepts = [], []
    for of_seed in optima.values():
        points = [(math.log(o.level), math.log(o.batch)) for o in of_seed if o.batch is not None]
        if len(points) >= LEAST_OPTIMA and len({level for level, _ in points}) > 1:
            line = linregress(*zip(*points, strict=True))
            exponents.append(-float(line.slope))
            intercepts.append(float(line.intercept))
    if not exponents:
        return None
    return BatchLaw(mean_estimate(exponents), math.exp(float(np.mean(intercepts))))
