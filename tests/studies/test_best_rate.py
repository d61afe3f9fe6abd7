"""The vertex of a parabola through the best rate and its neighbours, against parabolas that are known."""

import math

import numpy as np
import pytest

from mindllm_engine.errors import DataError
from mindllm_engine.studies.wind_tunnel.best_rate import best_rate

GRID = [0.001, 0.002, 0.004, 0.008, 0.016]


@pytest.mark.parametrize("optimum", [0.0021, 0.004, 0.0073])
def test_finds_the_vertex_of_a_parabola_exactly(optimum: float) -> None:
    found = best_rate({rate: 3 + 0.2 * math.log(rate / optimum) ** 2 for rate in GRID})
    assert found.rate == pytest.approx(optimum, rel=1e-9)
    assert found.edge is None


def test_agrees_with_a_fit_through_three_unevenly_spaced_rates() -> None:
    losses = {0.001: 4.0, 0.003: 3.1, 0.004: 3.3}
    second, first, _ = np.polyfit(np.log(list(losses)), list(losses.values()), 2)
    assert best_rate(losses).rate == pytest.approx(math.exp(-first / 2 / second), rel=1e-9)


@pytest.mark.parametrize(("optimum", "edge", "rate"), [(1e-5, "lowest", 0.001), (1.0, "highest", 0.016)])
def test_says_that_the_best_lies_at_an_end(optimum: float, edge: str, rate: float) -> None:
    found = best_rate({rate: math.log(rate / optimum) ** 2 for rate in GRID})
    assert (found.edge, found.rate) == (edge, rate)


def test_the_vertex_stays_within_half_a_step_of_the_best_rate() -> None:
    random = np.random.default_rng(1)
    for losses in random.normal(size=(200, len(GRID))):
        found = best_rate(dict(zip(GRID, losses.tolist(), strict=True)))
        best = GRID[int(np.argmin(losses))]
        assert abs(math.log2(found.rate / best)) <= 0.5 + 1e-9


def test_equal_losses_have_a_best_rate() -> None:
    assert best_rate({0.001: 3.0, 0.002: 2.0, 0.004: 2.0, 0.008: 2.0}).edge is None
    assert best_rate(dict.fromkeys(GRID, 2.0)).edge == "lowest"


def test_refuses_two_rates() -> None:
    with pytest.raises(DataError, match="too few points, 2 of at least 3"):
        best_rate({0.001: 3.0, 0.002: 2.0})
