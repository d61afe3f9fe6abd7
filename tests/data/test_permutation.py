"""The keyed permutation against what it promises: a bijection for every size, uniform, another for each key."""

import numpy as np
import pytest

from mindllm_engine.data.permutation import permute


@pytest.mark.parametrize("size", [*range(1, 80), 255, 256, 257, 1000, 4096, 65_537])
def test_permutation_is_a_bijection(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key=11)), np.arange(size))


def test_permutation_spreads_uniformly() -> None:
    size = 200_000
    places = permute(np.arange(size), size, key=5)
    # Each tenth of the positions falls evenly over the tenths of the places: chi-square with 81 degrees of freedom.
    table = np.histogram2d(np.arange(size), places, bins=10)[0]
    expected = size / 100
    assert ((table - expected) ** 2 / expected).sum() < 130
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.01


def test_permutations_differ_by_key() -> None:
    assert not np.array_equal(permute(np.arange(1000), 1000, 1), permute(np.arange(1000), 1000, 2))
