"""Elo by hand, Bradley-Terry against a general maximiser and on simulated arenas with known strengths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mindllm_engine.evaluation.arena.ratings import (
    bootstrap_strengths,
    bradley_terry,
    elo,
    elo_over_orders,
    indistinguishable,
    interval,
    on_elo_scale,
    outcomes_of_ranks,
)


def test_elo_by_hand() -> None:
    """1500 against 1500: the winner takes 16. Then 1516 against 1500: expected 1 / (1 + 10^(-16/400)) = 0.52301."""
    first, second = np.array([0, 0, 2]), np.array([1, 2, 1])
    after_one = elo(first[:1], second[:1], np.array([1.0]), 3)
    assert after_one.tolist() == [1516.0, 1484.0, 1500.0]
    after_two = elo(first[:2], second[:2], np.array([1.0, 0.0]), 3)
    np.testing.assert_allclose(after_two, [1516 - 32 * 0.5230107, 1484, 1500 + 32 * 0.5230107], atol=1e-4)
    tie = elo(first, second, np.array([1.0, 0.0, 0.5]), 3)
    expected = 1 / (1 + 10 ** ((1484 - after_two[2]) / 400))
    np.testing.assert_allclose(tie[1:], [1484 + 32 * (expected - 0.5), after_two[2] - 32 * (expected - 0.5)])
    assert tie.sum() == pytest.approx(4500)


def ranked_arena(strengths: np.ndarray, prompts: int, rng: np.random.Generator) -> np.ndarray:
    """(prompts, n) ranks: strengths with Gumbel noise, whose pairs win as Bradley-Terry says (Yellott 1977)."""
    utility = strengths + rng.gumbel(size=(prompts, len(strengths)))
    return np.argsort(np.argsort(-utility, axis=1), axis=1)


def wins_of(ranks: np.ndarray) -> np.ndarray:
    return np.stack([outcomes_of_ranks(row) for row in ranks])


def battles_of(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    triples = [
        (a, b, 0.5 if row[a] == row[b] else float(row[a] < row[b]))
        for row in ranks
        for a, b in itertools.combinations(range(ranks.shape[1]), 2)
    ]
    first, second, score = zip(*triples, strict=True)
    return np.array(first), np.array(second), np.array(score)


def test_online_elo_is_order_noise_that_more_prompts_do_not_cure() -> None:
    """Every prompt judged twice: some 80 points whether there are 60 prompts or 240."""
    rng = np.random.default_rng(0)
    for prompts in (60, 240):
        ranks = np.repeat(ranked_arena(np.array([0.8, 0.3, 0.0, -1.1]), prompts, rng), 2, axis=0)
        prompt = np.repeat(np.arange(prompts), 12)
        _, spread = elo_over_orders(*battles_of(ranks), prompt, models=4, orders=100, seed=1)
        assert 65 < spread.mean() < 100, spread


def test_elo_over_orders_is_the_mean_of_orders_taken_one_by_one() -> None:
    """Prompts of different numbers of battles, in orders that are taken apart by hand."""
    ranks = ranked_arena(np.array([0.5, 0.0, -0.5]), 10, np.random.default_rng(3))
    first, second, score = battles_of(ranks)
    of_ranking = [4, 4, 7, 7, 7, 1, 2, 2, 9, 9]
    mean, spread = elo_over_orders(first, second, score, np.repeat(of_ranking, 3), 3, orders=20, seed=4)
    places = np.random.default_rng(4).permuted(np.tile(np.arange(5), (20, 1)), axis=1)
    ratings = []
    for place in places:
        when = dict(zip([1, 2, 4, 7, 9], place.tolist(), strict=True))
        rows = sorted(range(10), key=lambda row: when[of_ranking[row]])
        ratings.append(elo(*battles_of(ranks[rows]), 3))
    np.testing.assert_allclose(mean, np.mean(ratings, 0))
    np.testing.assert_allclose(spread, np.std(ratings, 0, ddof=1))


def maximiser(wins: np.ndarray) -> np.ndarray:
    """The likelihood, maximised by scipy from several starts."""

    def loss(free: np.ndarray) -> float:
        b = np.append(free, -free.sum())
        return float(sum(wins[i, j] * np.logaddexp(0, b[j] - b[i]) for i, j in np.ndindex(wins.shape) if i != j))

    starts = [np.zeros(len(wins) - 1), np.linspace(-1, 1, len(wins) - 1)]
    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20000, "maxfev": 20000}
    best = min(
        (minimize(loss, minimize(loss, start).x, method="Nelder-Mead", options=options) for start in starts),
        key=lambda result: result.fun,
    )
    return np.append(best.x, -best.x.sum())


@pytest.mark.parametrize("models", [2, 3, 5])
def test_bradley_terry_is_the_likelihoods_maximum(models: int) -> None:
    rng = np.random.default_rng(models)
    for _ in range(3):
        wins = rng.integers(1, 30, (models, models)) + rng.choice([0, 0.5], (models, models))
        np.fill_diagonal(wins, 0)
        strengths, limited = bradley_terry(wins)
        np.testing.assert_allclose(strengths, maximiser(wins), atol=1e-5)
        assert not limited


@given(st.integers(2, 7), st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_at_the_maximum_each_model_wins_as_often_as_expected(models: int, seed: int) -> None:
    """The likelihood equations, also where games are few, lopsided or missing; many arenas at once give the same."""
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, 4, (3, models, models)) * rng.choice([0, 0.5, 1, 300], (3, models, models))
    wins[:, np.arange(models), np.arange(models)] = 0
    strengths, limited = bradley_terry(wins)
    for arena in range(3):
        alone, alone_limited = bradley_terry(wins[arena])
        np.testing.assert_allclose(strengths[arena], alone, atol=1e-4)
        assert limited[arena] == alone_limited
        played = wins[arena] + (0.5 * (1 - np.eye(models)) if limited[arena] else 0)
        chance = 1 / (1 + np.exp(alone[None, :] - alone[:, None]))
        np.testing.assert_allclose(
            ((played + played.T) * chance).sum(1), played.sum(1), atol=1e-6 * played.sum() + 1e-9
        )
        assert alone.sum() == pytest.approx(0, abs=1e-9)


def test_a_model_that_wins_all_has_a_finite_rating_and_is_marked() -> None:
    wins = np.array([[0, 20, 20], [0, 0, 12], [0, 8, 0]], float)
    strengths, limited = bradley_terry(wins)
    assert limited
    assert np.isfinite(strengths).all()
    assert strengths[0] > strengths[1] > strengths[2]
    untouched, ok = bradley_terry(wins + wins.T)
    assert not ok
    np.testing.assert_allclose(untouched, 0, atol=1e-9)


def test_on_elos_scale_400_points_are_odds_of_ten() -> None:
    strengths, _ = bradley_terry(np.array([[0.0, 10], [1, 0]]))
    assert np.diff(on_elo_scale(strengths))[0] == pytest.approx(-400)
    assert on_elo_scale(strengths).mean() == pytest.approx(1500)


def test_intervals_cover_known_strengths() -> None:
    """200 simulated arenas of rankings; 95 % intervals of the ratings and of their differences."""
    truth = np.array([0.8, 0.3, 0.0, -1.1])
    rng = np.random.default_rng(7)
    covered, told_wrongly = [], 0
    for arena in range(200):
        wins = wins_of(ranked_arena(truth, 120, rng))
        samples = bootstrap_strengths(wins, 400, seed=arena)
        bounds = interval(samples)
        covered.append((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))
        differences = interval(samples[:, :, None] - samples[:, None, :])
        told_wrongly += bool((differences[0, 3, 1] < 0) or (differences[0, 1, 1] < 0))
    share = np.mean(covered)
    print(f"coverage {share:.3f}")
    assert 0.92 <= share <= 0.975
    assert told_wrongly == 0


def test_the_bootstrap_draws_prompts_and_not_battles() -> None:
    """Each ranking given five times over says no more than once: the interval must stay as wide."""
    ranks = ranked_arena(np.array([0.5, 0.0, -0.5]), 80, np.random.default_rng(1))
    once = bootstrap_strengths(wins_of(ranks), 1000, seed=0)
    fivefold = bootstrap_strengths(5 * wins_of(ranks), 1000, seed=0)
    np.testing.assert_allclose(interval(once), interval(fivefold), atol=1e-6)


def test_groups_that_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(5)
    truth = np.array([-1.5, 1.2, 1.2, 0.0])
    wins = wins_of(ranked_arena(truth, 300, rng))
    strengths, _ = bradley_terry(wins.sum(0))
    groups = indistinguishable(strengths, bootstrap_strengths(wins, 500, seed=0))
    assert [sorted(group) for group in groups] == [[1, 2], [3], [0]]


def test_groups_may_overlap() -> None:
    """A differs from C, and B from neither."""
    rng = np.random.default_rng(0)
    samples = np.array([0.5, 0.0, -0.5]) + rng.normal(0, 0.3, (4000, 3))
    assert indistinguishable(samples.mean(0), samples) == [[0, 1], [1, 2]]


def test_outcomes_of_ranks() -> None:
    wins = outcomes_of_ranks(np.array([1, 0, 1]))
    assert wins.tolist() == [[0, 0, 0.5], [1, 0, 1], [0.5, 0, 0]]
