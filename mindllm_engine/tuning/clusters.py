"""One-dimensional k-means: instruction data clustered by entropy (arXiv 2310.15777, section 5.3).

Exactly, by dynamic programming in C++ (csrc/optimal_intervals.hpp): the least sum of squared distances there is, and
the same clusters each time. Or by scikit-learn's K-Means as in the paper, whose centres depend on random starts.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

import mindllm_engine._native as _native
from mindllm_engine.errors import ConfigError

Method = Literal["exact", "kmeans"]
Values = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

# As scikit-learn had it when the paper was written.
KMEANS_STARTS = 10


def cluster(values: Values, clusters: int, method: Method, seed: int) -> Labels:
    """The cluster of each value, counted from the lowest. Fewer distinct values than `clusters` are a cluster each.

    Raises:
        ConfigError: no values, no clusters, or scikit-learn is missing.
    """
    if clusters < 1 or not len(values):
        raise ConfigError(f"clusters: cannot cut {len(values)} scored records into {clusters} clusters")
    ordered = np.sort(values.astype(np.float64))
    distinct = 1 + int(np.count_nonzero(np.diff(ordered)))
    clusters = min(clusters, distinct)
    if method == "exact":
        begins = _native.optimal_intervals(ordered, clusters)
        labels: Labels = np.searchsorted(ordered[begins[1:]], values, side="right")
        return labels
    return _kmeans(values, clusters, seed)


def within_cluster_sum(values: Values, labels: Labels) -> float:
    """The sum of squared distances from the clusters' means, which k-means makes small."""
    counts = np.maximum(np.bincount(labels), 1)
    means = np.bincount(labels, weights=values) / counts
    return float(np.sum((values - means[labels]) ** 2))


def _kmeans(values: Values, clusters: int, seed: int) -> Labels:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ConfigError("method kmeans: needs scikit-learn; pip install 'mindllm-engine[eval]'") from error
    fitted = KMeans(clusters, n_init=KMEANS_STARTS, random_state=seed).fit(values.reshape(-1, 1))
    places = np.argsort(np.argsort(fitted.cluster_centers_[:, 0], kind="stable"), kind="stable")
    labels: Labels = places[fitted.labels_].astype(np.int64)
    return labels
