"""The best learning rate of a grid: a parabola of loss over log rate, through the best rate and its two neighbours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mindllm_engine.errors import DataError

Edge = Literal["lowest", "highest"]


@dataclass(frozen=True)
class BestRate:
    """Where the loss is least.

    Attributes:
        rate: the parabola's vertex; at an edge the edge itself.
        edge: which end of the grid is best, so that the optimum lies there or beyond; None inside.
    """

    rate: float
    edge: Edge | None


def best_rate(losses: Mapping[float, float]) -> BestRate:
    """The best of learning rate -> loss, of one network and seed.

    Raises:
        DataError: fewer than three rates, of which no parabola can be drawn.
    """
    rates = sorted(losses)
    if len(rates) < 3:
        raise DataError(f"best learning rate: too few points, {len(rates)} of at least 3 rates; add some to the grid")
    best = min(range(len(rates)), key=lambda place: losses[rates[place]])
    if best in (0, len(rates) - 1):
        return BestRate(rates[best], "lowest" if best == 0 else "highest")
    left, middle, right = (math.log(rate) for rate in rates[best - 1 : best + 2])
    low, least, high = (losses[rate] for rate in rates[best - 1 : best + 2])
    # Slopes of the two chords; the vertex is where the slope, which moves linearly between their middles, is zero.
    falling, rising = (least - low) / (middle - left), (high - least) / (right - middle)
    if rising == falling:  # three equal losses
        return BestRate(rates[best], None)
    vertex = (left + middle) / 2 - falling * (right - left) / 2 / (rising - falling)
    return BestRate(math.exp(vertex), None)
