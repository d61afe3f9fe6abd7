"""Robust fits of laws of one or several variables, L = floor + sum_j A_j x_j^-alpha_j, with intervals.

The loss is Hoffmann et al.'s (arXiv 2203.15556, section 3.3 and appendix D.2): Huber, delta 1e-3, of log prediction
less log measurement. A grid of starts is brought down together by Levenberg-Marquardt steps with Huber's weights, and
the best polished by L-BFGS.

Intervals are bootstraps of residuals, corrected for small samples twice: residuals are inflated by sqrt(n / (n - p)),
as a fit of p unknowns leaves them too small, and the percentiles lie where Student's t with n - p degrees of freedom
puts them (Hesterberg 2015, The American Statistician 69(4), section 5). Residuals are smoothed by normal noise of their
own size: so small a delta draws the law through some points, and their residuals of nought, drawn again, would promise
too much. Points are taken to err independently; several
seeds are several points. What a law of the wrong form misses counts as noise, so that it widens the intervals.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.errors import DataError
from mindllm_engine.studies.seeds import LEVEL, Estimate

Array = NDArray[np.float64]

HUBER_DELTA = 1e-3
START_EXPONENTS = (0.05, 0.15, 0.35, 0.7, 1.2)
# Of the lowest loss, what the floor of a start is.
START_FLOORS = (0.2, 0.6, 0.9)
BOOTSTRAPS = 1000
STEPS = 60


@dataclass(frozen=True)
class Fit:
    """A law's fit.

    Attributes:
        variables: their names, in the order of the law's.
        law: (floor, A_1, alpha_1, A_2, alpha_2, ...).
        samples: of the law, (bootstraps, 1 + 2 variables).
        residuals: log prediction less log measurement, of each point.
    """

    variables: tuple[str, ...]
    law: Array
    samples: Array
    residuals: Array

    @property
    def degrees_of_freedom(self) -> int:
        """Points less unknowns."""
        return len(self.residuals) - len(self.law)

    @property
    def noise(self) -> Array:
        """Residuals as large as errors of new points are."""
        return _inflated(self.residuals, len(self.law))

    def unknown(self, place: int) -> Estimate:
        """The law's number at this place, with its interval."""
        return self.estimate(lambda laws: laws[..., place])

    def estimate(self, number: Callable[[Array], Array]) -> Estimate:
        """A number of the law, which takes laws in the last axis, with its interval."""
        with np.errstate(all="ignore"):
            samples = np.asarray(number(self.samples))
            return _interval(float(number(self.law)), samples, self.degrees_of_freedom)

    def predict(self, points: Mapping[str, float], measured: int = 1) -> Estimate:
        """The loss at a new point, with the interval that holds the mean of `measured` runs there."""
        place = np.array([[points[name]] for name in self.variables])
        value = float(predictions(self.law[None], place)[0, 0])
        drawn = _draw(self.noise, (len(self.samples), measured), np.random.default_rng(1))
        samples = predictions(self.samples, place)[:, 0] * np.exp(drawn.mean(axis=1))
        return _interval(value, samples, self.degrees_of_freedom)


def fit_law(points: Mapping[str, Array], loss: Array, purpose: str, bootstraps: int = BOOTSTRAPS) -> Fit:
    """Fit L = floor + sum_j A_j x_j^-alpha_j.

    Args:
        points: name of a variable -> its values, above 0.
        loss: measured at each point, above 0.
        purpose: what is fitted, for messages.

    Raises:
        DataError: a value that is not a positive number, or too few points.
    """
    variables = np.array([np.asarray(values, dtype=float) for values in points.values()])  # (variables, points)
    loss = np.asarray(loss, dtype=float)
    _check(dict(zip(points, variables, strict=True)), loss, purpose)
    centre = np.log(variables).mean(axis=1, keepdims=True)
    logs, target = np.log(variables) - centre, np.log(loss)
    starts = _starts(logs, loss)
    descended = _descend(starts, logs, np.broadcast_to(target, (len(starts), len(loss))))
    best = _polish(descended[np.argmin(_objective(descended, logs, target))], logs, target)
    predicted = _log_predictions(best[None], logs)[0]
    residuals = predicted - target
    rng = np.random.default_rng(0)
    drawn = _draw(_inflated(residuals, len(best)), (bootstraps, len(loss)), rng)
    samples = _descend(np.broadcast_to(best, (bootstraps, len(best))), logs, predicted + drawn)
    laws = _laws(np.vstack([best[None], samples]), centre[:, 0])
    return Fit(tuple(points), laws[0], laws[1:], residuals)


def predictions(laws: Array, places: Array) -> Array:
    """(laws, places) losses of laws (laws, 1 + 2 variables) at `places` (variables, places)."""
    coefficients, exponents = laws[:, 1::2, None], laws[:, 2::2, None]
    with np.errstate(all="ignore"):
        return np.asarray(laws[:, :1] + (coefficients * places[None] ** -exponents).sum(axis=1))


def _check(points: Mapping[str, Array], loss: Array, purpose: str) -> None:
    for name, values in (*points.items(), ("loss", loss)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise DataError(f"{purpose}: a value of {name} is not a positive number; leave that run out")
    unknowns = 1 + 2 * len(points)
    if len(loss) <= unknowns:
        raise DataError(
            f"{purpose}: too few points: {len(loss)} for {unknowns} unknowns; {unknowns + 1} are needed at least, so "
            "add runs to the grid"
        )
    for name, values in points.items():
        if len(set(values)) < 3:
            raise DataError(
                f"{purpose}: too few points: {name} takes {len(set(values))} values, and 3 are needed at least for a "
                "power law with a floor; add runs to the grid"
            )


# The fit's own unknowns, in the last axis: log floor, then for each variable the logarithm of its term at the
# geometric mean of its values, and the logarithm of its exponent. So floor, terms and exponents stay positive.


def _laws(unknowns: Array, centre: Array) -> Array:
    laws = np.exp(np.clip(unknowns, -300, 300))
    for number, mean in enumerate(centre):
        term, exponent = unknowns[:, 1 + 2 * number], laws[:, 2 + 2 * number]
        laws[:, 1 + 2 * number] = np.exp(np.clip(term + exponent * mean, -300, 300))
    return laws


def _log_terms(unknowns: Array, logs: Array) -> Array:
    """(fits, 1 + variables, points): logarithms of floor and terms."""
    floor = np.broadcast_to(unknowns[:, :1, None], (len(unknowns), 1, logs.shape[1]))
    return np.concatenate([floor, unknowns[:, 1::2, None] - np.exp(unknowns[:, 2::2, None]) * logs[None]], axis=1)


def _log_predictions(unknowns: Array, logs: Array) -> Array:
    return np.asarray(np.logaddexp.reduce(_log_terms(unknowns, logs), axis=1))


def _huber(residuals: Array) -> Array:
    size = np.abs(residuals)
    return np.asarray(
        np.where(size <= HUBER_DELTA, 0.5 * size**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA)).sum(axis=-1)
    )


def _objective(unknowns: Array, logs: Array, target: Array) -> Array:
    return _huber(_log_predictions(unknowns, logs) - target)


def _jacobian(unknowns: Array, logs: Array) -> tuple[Array, Array]:
    """Log predictions (fits, points), and what they change by each unknown (fits, points, unknowns)."""
    terms = _log_terms(unknowns, logs)
    total = np.logaddexp.reduce(terms, axis=1)
    shares = np.exp(terms - total[:, None])
    change = np.empty((len(unknowns), logs.shape[1], unknowns.shape[1]))
    change[:, :, 0] = shares[:, 0]
    for number, values in enumerate(logs):
        change[:, :, 1 + 2 * number] = shares[:, 1 + number]
        change[:, :, 2 + 2 * number] = -shares[:, 1 + number] * np.exp(unknowns[:, 2 + 2 * number, None]) * values
    return total, change


def _starts(logs: Array, loss: Array) -> Array:
    """Floors times exponents; the terms share what lies above the floor."""
    lowest, middle = float(loss.min()), float(np.median(loss))
    starts = []
    for share in START_FLOORS:
        term = math.log((middle - share * lowest) / len(logs))
        for exponents in itertools.product(START_EXPONENTS, repeat=len(logs)):
            unknowns = [math.log(share * lowest)]
            for exponent in exponents:
                unknowns += [term, math.log(exponent)]
            starts.append(unknowns)
    return np.array(starts)


def _descend(starts: Array, logs: Array, target: Array) -> Array:
    """Bring many fits down at once: (fits, unknowns) to targets (fits, points). Levenberg-Marquardt, in which points
    beyond Huber's delta weigh as his loss does."""
    unknowns = np.array(starts)
    damping = np.full(len(unknowns), 1e-2)
    total, change = _jacobian(unknowns, logs)
    value = _huber(total - target)
    identity = np.eye(unknowns.shape[1])
    for _ in range(STEPS):
        residuals = total - target
        weights = np.minimum(1.0, HUBER_DELTA / np.maximum(np.abs(residuals), 1e-300))
        weighted = change * weights[:, :, None]
        normal = np.einsum("fni,fnj->fij", weighted, change)
        diagonal = np.einsum("fii->fi", normal)
        damped = normal + (damping[:, None] * diagonal + 1e-14)[:, :, None] * identity
        step = np.linalg.solve(damped, -np.einsum("fni,fn->fi", weighted, residuals)[:, :, None])[:, :, 0]
        tried = unknowns + np.clip(step, -2.0, 2.0)
        tried_total, tried_change = _jacobian(tried, logs)
        tried_value = _huber(tried_total - target)
        better = tried_value < value
        moved = bool((better & (value - tried_value > 1e-9 * value)).any())
        unknowns[better], total[better], change[better] = tried[better], tried_total[better], tried_change[better]
        value = np.where(better, tried_value, value)
        damping = np.where(better, damping / 4, damping * 4)
        if not moved and damping.min() > 1e3:
            break
    return unknowns


def _polish(start: Array, logs: Array, target: Array) -> Array:
    from scipy.optimize import minimize

    def objective(unknowns: Array) -> tuple[float, Array]:
        total, change = _jacobian(unknowns[None], logs)
        residuals = total[0] - target
        slope = np.clip(residuals, -HUBER_DELTA, HUBER_DELTA) @ change[0]
        return float(_huber(residuals)), slope

    # The loss is of the order of 1e-6 a point, below L-BFGS's thresholds as they are.
    scale = 1 / HUBER_DELTA**2
    found = minimize(lambda x: tuple(scale * part for part in objective(x)), start, jac=True, method="L-BFGS-B")
    return np.asarray(found.x if objective(found.x)[0] <= objective(start)[0] else start)


def _inflated(residuals: Array, unknowns: int) -> Array:
    centred = residuals - residuals.mean()
    return np.asarray(centred * math.sqrt(len(residuals) / (len(residuals) - unknowns)))


def _draw(noise: Array, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Smoothed bootstrap: residuals and normal noise in equal parts, together as large as the residuals."""
    return np.asarray((rng.choice(noise, size=shape) + noise.std() * rng.standard_normal(shape)) / math.sqrt(2))


def _interval(value: float, samples: Array, degrees_of_freedom: int) -> Estimate:
    """Percentiles of bootstrap samples, moved outwards as Student's t lies outside the normal distribution."""
    from scipy.stats import norm, t

    finite = samples[np.isfinite(samples)]
    if len(finite) < 0.9 * len(samples) or not math.isfinite(value):
        return Estimate(value, -math.inf, math.inf, len(finite))
    tail = float(norm.cdf(t.ppf(0.5 - LEVEL / 2, degrees_of_freedom)))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(finite))
