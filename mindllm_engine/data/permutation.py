"""Keyed permutations by arithmetic: position i of n goes to a pseudo-random, distinct place, with nothing stored
(csrc/permutation.hpp)."""

import numpy as np
from numpy.typing import NDArray

import mindllm_engine._native as _native


def derive_key(*parts: int) -> int:
    """A 64-bit key from a seed and whatever else tells one use from another; of each part the lowest 64 bits count."""
    return _native.derive_key(*parts)


def permute(positions: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Where each of `positions` (int64, any shape) goes under the permutation of [0, size) named by `key`.

    Raises IndexError for a position outside [0, size).
    """
    return _native.permute(positions, size, key)
