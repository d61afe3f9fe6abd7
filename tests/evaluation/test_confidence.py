"""Intervals against scipy's and against a bootstrap done the long way; averages against sums by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.confidence import Interval, paired_bootstrap, wilson
from mindllm_engine.evaluation.group_averages import group_averages

stats = pytest.importorskip("scipy.stats")


@given(st.integers(1, 20_000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_is_scipys(total: int, share: float, level: float) -> None:
    correct = round(share * total)
    ours = wilson(correct, total, level)
    scipys = stats.binomtest(correct, total).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high), abs=1e-12)
    assert ours.holds(correct / total)


def test_wilson_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = [wilson(int(correct), 200).holds(0.25) for correct in rng.binomial(200, 0.25, size=4000)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (-1, 10), (11, 10)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="right answers of"):
        wilson(correct, total)


@pytest.mark.parametrize("kind", ["right or wrong", "continuous"])
def test_the_paired_bootstrap_is_scipys(kind: str) -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(size=400)  # what makes a question hard for both
    a, b = hard + rng.normal(size=400) + 0.15, hard + rng.normal(size=400)
    if kind == "right or wrong":
        a, b = (a > 0).astype(float), (b > 0).astype(float)
    ours = paired_bootstrap(a, b, rounds=20_000)
    scipys = stats.bootstrap(
        (a, b),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours.difference == pytest.approx(a.mean() - b.mean())
    # Two bootstraps of 20,000 rounds agree to a few thousandths.
    assert (ours.interval.low, ours.interval.high) == pytest.approx((scipys.low, scipys.high), abs=0.006)


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 500))
@settings(deadline=None, max_examples=50)
def test_right_or_wrong_is_tested_exactly(wins: int, losses: int, ties: int) -> None:
    a = np.array([1.0] * wins + [0.0] * losses + [1.0] * ties)
    b = np.array([0.0] * wins + [1.0] * losses + [1.0] * ties)
    exact = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert paired_bootstrap(a, b, rounds=10).p_value == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_other_scores_are_tested_by_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    differences = rng.normal(0.1, 1.0, size=500)
    expected = stats.ttest_1samp(differences, 0).pvalue  # the same for a mean of 500
    assert paired_bootstrap(differences, np.zeros(500)).p_value == pytest.approx(expected, abs=0.01)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(3)
    b = (rng.random(2000) < 0.4).astype(float)
    a = b.copy()
    a[:40] = 1.0
    paired = paired_bootstrap(a, b)
    apart = wilson(int(a.sum()), 2000), wilson(int(b.sum()), 2000)
    assert paired.told_apart
    assert apart[0].low < apart[1].high  # two intervals apart overlap


def test_equal_models_are_not_told_apart_and_seeds_are_kept() -> None:
    same = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert not same.told_apart
    assert same.interval == Interval(0.0, 0.0)
    assert same.p_value == 1.0
    a, b = np.arange(50) % 2, np.arange(50) % 3 == 0
    assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)


@pytest.mark.parametrize(("a", "b"), [([1, 0], [1]), ([], []), ([[1, 0]], [[1, 0]])])
def test_scores_that_are_no_pairs_are_refused(a: list[Any], b: list[Any]) -> None:
    with pytest.raises(ValueError, match="in pairs"):
        paired_bootstrap(a, b)


RESULTS = {
    "results": {
        "one": {"acc,none": 0.5, "sample_len": 10},
        "two": {"acc,none": 0.2, "sample_len": 30},
        "three": {"acc,none": 1.0, "sample_len": 60},
    },
    "group_subtasks": {"all": ["low", "three"], "low": ["one", "two"], "one": [], "two": []},
}


def test_averages_of_a_group_with_a_group_in_it() -> None:
    found = group_averages(RESULTS, "all", "acc,none")
    assert found.macro == pytest.approx((0.5 + 0.2 + 1.0) / 3)
    assert found.micro == pytest.approx((5 + 6 + 60) / 100)
    assert (found.tasks, found.questions) == (3, 100)


def test_an_unknown_group_or_metric_is_named() -> None:
    with pytest.raises(DataError, match="no group some in the results; there are all, low"):
        group_averages(RESULTS, "some", "acc,none")
    with pytest.raises(DataError, match="task one has no metric f1,none; there are acc,none"):
        group_averages(RESULTS, "all", "f1,none")
