"""What a few seeds say of a number: its mean, and the interval in which it lies, by Student's t.

Two settings are compared seed by seed: the same seed draws the same initial weights and the same order of data, so that
the differences vary less than the numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with the interval that holds it at LEVEL, and how many values it is from. Where one value is all there
    is, the interval is unbounded."""

    value: float
    low: float
    high: float
    count: int

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def as_json(self) -> dict[str, Any]:
        """Plain data; what is not finite stands as null."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}

    def text(self, digits: int = 3, unit: str = "") -> str:
        """Such as "0.123 (0.101 to 0.145)"."""
        interval = f" ({self.low:.{digits}f} to {self.high:.{digits}f})" if self.is_bounded else " (no interval)"
        return f"{self.value:.{digits}f}{unit}{interval}"


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, one a seed at least."""
    mean, count = fmean(values), len(values)
    if count < 2:
        return Estimate(mean, -math.inf, math.inf, count)
    from scipy.stats import t

    half = float(t.ppf(0.5 + LEVEL / 2, count - 1)) * stdev(values) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def paired_estimate(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """The mean of `ours` less `theirs` over the seeds that have both, one at least."""
    return mean_estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def bootstrap_estimate(value: float, samples: Sequence[float]) -> Estimate:
    """A fitted number with the percentiles of its bootstrap samples; those that are not finite are left out."""
    finite = sorted(sample for sample in samples if math.isfinite(sample))
    if len(finite) < 2:
        return Estimate(value, -math.inf, math.inf, len(finite))
    import numpy as np

    low, high = np.quantile(finite, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(value, float(low), float(high), len(finite))
