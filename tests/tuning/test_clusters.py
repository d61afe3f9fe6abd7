"""One-dimensional k-means against every partition there is, and against scikit-learn."""

import itertools

import mindllm_engine._native as _native
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.errors import ConfigError
from mindllm_engine.tuning.clusters import cluster, within_cluster_sum


def least_sum(values: list[float], clusters: int) -> float:
    """Over all partitions of the sorted values into at most so many intervals. (An optimal cluster is an interval.)"""
    ordered = sorted(values)
    found = []
    for parts in range(1, min(clusters, len(values)) + 1):
        for cuts in itertools.combinations(range(1, len(values)), parts - 1):
            pieces = [ordered[a:b] for a, b in itertools.pairwise((0, *cuts, len(values)))]
            found.append(sum(sum((x - np.mean(piece)) ** 2 for x in piece) for piece in pieces))
    return min(found)


numbers = st.lists(
    st.one_of(st.integers(-50_000, 50_000).map(lambda number: number / 1000), st.integers(0, 3).map(float)),
    min_size=1,
    max_size=9,
)


@settings(max_examples=150, deadline=None)
@given(numbers, st.integers(1, 5))
def test_no_partition_is_better(values: list[float], clusters: int) -> None:
    array = np.array(values)
    labels = cluster(array, clusters, "exact", seed=0)
    assert within_cluster_sum(array, labels) <= least_sum(values, clusters) + 1e-9 * (1 + np.abs(array).max() ** 2)
    order = np.argsort(array, kind="stable")
    assert (np.diff(labels[order]) >= 0).all()
    assert set(labels) == set(range(min(clusters, len(set(values)))))
    for value in set(values):
        assert len(set(labels[array == value])) == 1


@pytest.mark.parametrize("clusters", [2, 5, 10])
def test_never_worse_than_many_random_starts(clusters: int) -> None:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(clusters)
    values = np.concatenate([rng.normal(2.0, 0.4, 2000), rng.gamma(2.0, 1.1, 1500), rng.normal(5.5, 0.1, 200)])
    ours = within_cluster_sum(values, cluster(values, clusters, "exact", seed=0))
    for seed in range(3):
        assert ours <= KMeans(clusters, n_init=20, random_state=seed).fit(values.reshape(-1, 1)).inertia_ * (1 + 1e-9)
        assert ours <= within_cluster_sum(values, cluster(values, clusters, "kmeans", seed)) * (1 + 1e-9)


def test_scikit_learns_labels_rise_with_the_values() -> None:
    values = np.random.default_rng(0).gamma(3.0, 0.7, 500)
    labels = cluster(values, 6, "kmeans", seed=4)
    assert (np.diff(labels[np.argsort(values)]) >= 0).all()
    assert (labels == cluster(values, 6, "kmeans", seed=4)).all()


def test_large_offsets_do_not_swallow_the_distances() -> None:
    values = np.random.default_rng(1).normal(0.0, 1e-3, 1000)
    moved = cluster(values + 1e4, 7, "exact", seed=0)
    assert (moved == cluster(values + 1e4 - 1e4, 7, "exact", seed=0)).all()


@pytest.mark.parametrize(
    ("values", "clusters"),
    [([1.0, 0.5], 1), ([0.0, float("nan")], 1), ([0.0, float("inf")], 1), ([1.0], 2), ([1.0], 0), ([[1.0, 2.0]], 1)],
)
def test_the_native_cut_refuses_what_it_cannot_cut(values: list[float], clusters: int) -> None:
    with pytest.raises(ValueError, match=r"values|clusters"):
        _native.optimal_intervals(np.array(values), clusters)


def test_nothing_to_cut() -> None:
    with pytest.raises(ConfigError, match="0 scored records"):
        cluster(np.array([]), 3, "exact", seed=0)
