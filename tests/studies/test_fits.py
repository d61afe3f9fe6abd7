"""Robust fits: planted laws come back, the minimum is SciPy's, and intervals hold the truth as often as they say."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from mindllm_engine.errors import DataError
from mindllm_engine.studies.fits import HUBER_DELTA, fit_law
from mindllm_engine.studies.laws import log_tokens_per_parameter, loss_law, power_law

LAW = np.array([1.7, 400.0, 0.34, 410.0, 0.28])


def grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Five sizes and four budgets, as two cores train them."""
    parameters, tokens = np.meshgrid([0.19e6, 0.32e6, 0.48e6, 0.87e6, 1.35e6], [0.15e6, 0.3e6, 0.6e6, 1.2e6])
    return parameters.ravel(), tokens.ravel()


def test_law_without_noise_comes_back() -> None:
    parameters, tokens = grid()
    fit = fit_law({"N": parameters, "D": tokens}, loss_law(parameters, tokens, LAW), "test", bootstraps=5)
    np.testing.assert_allclose(fit.law, LAW, rtol=2e-3)
    assert fit.degrees_of_freedom == 15


def test_minimum_is_that_of_hoffmanns_objective() -> None:
    """Written anew here, and minimised without derivatives' help from the code under test."""
    parameters, tokens = grid()
    rng = np.random.default_rng(2)
    losses = loss_law(parameters, tokens, LAW) * np.exp(0.004 * rng.standard_normal(20))

    def objective(x: NDArray[np.float64]) -> float:
        e, a, alpha, b, beta = x
        predicted = np.logaddexp(np.logaddexp(a - alpha * np.log(parameters), b - beta * np.log(tokens)), e)
        size = np.abs(predicted - np.log(losses))
        huber = np.where(size < HUBER_DELTA, size**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
        return float(huber.sum() * 1e6)

    fit = fit_law({"N": parameters, "D": tokens}, losses, "test", bootstraps=5)
    floor, a, alpha, b, beta = fit.law
    ours = objective(np.array([np.log(floor), np.log(a), alpha, np.log(b), beta]))
    theirs = min(
        minimize(
            objective, np.array([e, x, s, x, s]), method="Nelder-Mead", options={"maxiter": 8000, "maxfev": 8000}
        ).fun
        for e in (0.0, 0.6)
        for x, s in ((4.0, 0.2), (6.0, 0.35))
    )
    assert ours <= theirs * 1.001


def test_one_bad_point_moves_the_law_little() -> None:
    compute = np.geomspace(1e12, 1e15, 12)
    losses = power_law(compute, 2.0, 300.0, 0.16)
    losses[5] *= 1.2
    fit = fit_law({"C": compute}, losses, "test", bootstraps=5)
    np.testing.assert_allclose(fit.law[[0, 2]], [2.0, 0.16], rtol=0.02)


def test_optimal_ratio_is_held_at_about_the_nominal_rate() -> None:
    """Of 120 intervals at 95 %, 106 or fewer hold the truth once in 600 times."""
    parameters, tokens = grid()
    compute = 6 * parameters.max() * tokens.max()
    truth = float(log_tokens_per_parameter(compute, LAW))
    rng = np.random.default_rng(8)
    held, widths = 0, []
    for _ in range(120):
        losses = loss_law(parameters, tokens, LAW) * np.exp(0.003 * rng.standard_normal(20))
        fit = fit_law({"N": parameters, "D": tokens}, losses, "test", bootstraps=80)
        estimate = fit.estimate(lambda law: log_tokens_per_parameter(compute, law))
        held += estimate.low <= truth <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert held >= 107
    assert np.median(widths) < 1.0  # and not by being as wide as anything


def test_predicted_loss_is_held_at_about_the_nominal_rate() -> None:
    compute = np.repeat(np.geomspace(5e11, 1e13, 5), 2)
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(120):
        losses = power_law(compute, 2.0, 300.0, 0.16) * np.exp(0.004 * rng.standard_normal(10))
        measured = power_law(2e13, 2.0, 300.0, 0.16) * np.exp(0.004 * rng.standard_normal(2)).mean()
        estimate = fit_law({"C": compute}, losses, "test", bootstraps=80).predict({"C": 2e13}, measured=2)
        held += estimate.low <= measured <= estimate.high
    assert held >= 107


@pytest.mark.parametrize("bad", [float("nan"), 0.0, float("inf")])
def test_value_that_is_no_loss_is_refused(bad: float) -> None:
    losses = power_law(np.geomspace(1e12, 1e15, 6), 2.0, 300.0, 0.16)
    losses[2] = bad
    with pytest.raises(DataError, match=r"my law: a value of loss is not a positive number"):
        fit_law({"C": np.geomspace(1e12, 1e15, 6)}, losses, "my law")


def test_too_few_points_are_refused() -> None:
    with pytest.raises(DataError, match=r"too few points: 3 for 3 unknowns; 4 are needed"):
        fit_law({"C": np.array([1e12, 1e13, 1e14])}, np.array([5.0, 4.0, 3.5]), "my law")


def test_too_few_values_of_a_variable_are_refused() -> None:
    parameters, tokens = np.repeat([1e6, 2e6], 4), np.tile([1e6, 2e6, 4e6, 8e6], 2)
    with pytest.raises(DataError, match=r"too few points: N takes 2 values"):
        fit_law({"N": parameters, "D": tokens}, loss_law(parameters, tokens, LAW), "my law")
