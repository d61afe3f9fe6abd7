"""The papers' laws against brute force and their printed equations."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from mindllm_engine.studies.fits import fit_law
from mindllm_engine.studies.laws import (
    MINDLLM_PRINTED_A,
    MINDLLM_PRINTED_LIMIT,
    default_curve_fit,
    log_tokens_per_parameter,
    loss_law,
    power_law,
    printed_law,
)

LAW = np.array([1.7, 400.0, 0.34, 410.0, 0.28])


@pytest.mark.parametrize("compute", [1e13, 1e18, 1e23])
def test_optimum_is_where_the_loss_is_lowest(compute: float) -> None:
    def loss(log_parameters: float) -> float:
        parameters = np.exp(log_parameters)
        return float(loss_law(parameters, compute / 6 / parameters, LAW))

    best = minimize_scalar(loss, bounds=(5, 40), method="bounded", options={"xatol": 1e-9}).x
    expected = math.log(compute / 6) - 2 * best
    assert float(log_tokens_per_parameter(compute, LAW)) == pytest.approx(expected, abs=1e-3)


def test_optimum_is_minicpms_equation_3() -> None:
    _, c_n, alpha, c_d, beta = LAW
    k, eta = (alpha * c_n / (beta * c_d)) ** (1 / (alpha + beta)), (beta - alpha) / (alpha + beta)
    parameters_per_token = k**2 * (1e20 / 6) ** eta
    assert np.exp(log_tokens_per_parameter(1e20, LAW)) == pytest.approx(1 / parameters_per_token)


def test_optimum_takes_many_laws() -> None:
    many = log_tokens_per_parameter(1e20, np.stack([LAW, LAW * [1, 2, 1, 1, 1]]))
    assert many[0] == log_tokens_per_parameter(1e20, LAW)
    assert many[1] < many[0]  # what parameters leave unlearnt weighs more: take more of them


def test_printed_law_rises_with_compute() -> None:
    losses = printed_law(np.array([1e15, 1e18]), MINDLLM_PRINTED_A, MINDLLM_PRINTED_LIMIT)
    assert losses[1] - losses[0] == pytest.approx(0.214 * math.log(1000))


def test_curve_fit_finds_the_printed_form() -> None:
    compute = np.geomspace(1e12, 1e15, 6)
    assert default_curve_fit(printed_law, compute, printed_law(compute, -0.3, 14.0)) == pytest.approx([-0.3, 14.0])


def test_curve_fit_loses_a_power_law_that_the_robust_fit_finds() -> None:
    compute, planted = np.geomspace(5e11, 2e13, 12), np.array([2.0, 300.0, 0.16])
    noise = np.exp(0.003 * np.random.default_rng(3).standard_normal(12))
    losses = power_law(compute, *planted) * noise
    plain = default_curve_fit(power_law, compute, losses)
    fit = fit_law({"C": compute}, losses, "test")
    for place, value in enumerate(planted):
        estimate = fit.unknown(place)
        assert estimate.low <= value <= estimate.high
    assert plain is None or not fit.unknown(2).low <= plain[2] <= fit.unknown(2).high
    at_target = fit.predict({"C": 1e14})
    assert at_target.low <= power_law(1e14, *planted) <= at_target.high
    assert plain is None or abs(power_law(1e14, *plain) / power_law(1e14, *planted) - 1) > 0.05


def test_curve_fit_that_gives_up_is_none() -> None:
    assert default_curve_fit(power_law, np.array([1.0, 2.0]), np.array([np.nan, 1.0])) is None
