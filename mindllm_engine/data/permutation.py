"""Keyed permutations by arithmetic: position i of n goes to a pseudo-random, distinct place, with nothing stored.

A balanced Feistel network of four rounds permutes the smallest even-bit power of two that holds n; places at or
beyond n are walked on (the network is applied again) until they fall inside, which keeps it a bijection (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). Fewer than four walks are needed on average.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4

# splitmix64's increment and multipliers
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: each bit of the result depends on every bit of the value."""
    with np.errstate(over="ignore"):
        values = values + _INCREMENT
        values = (values ^ (values >> np.uint64(30))) * _MULTIPLIER_1
        values = (values ^ (values >> np.uint64(27))) * _MULTIPLIER_2
    return values ^ (values >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """A 64-bit key from a seed and whatever else tells one use from another."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key ^ np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return int(key[0])


def permute(positions: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Where each of `positions` (int64, any shape, in [0, size)) goes under the permutation of [0, size) named by
    `key`."""
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    round_keys = [np.uint64(derive_key(key, number)) for number in range(ROUNDS)]
    places = positions.astype(np.uint64)
    outside = np.ones(places.shape, bool)
    while outside.any():
        places[outside] = _feistel(places[outside], half_bits, round_keys)
        outside = places >= np.uint64(size)
    return places.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: np.uint64, round_keys: list[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in round_keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return (left << half_bits) | right
