"""The keyed permutation against what it promises: a bijection for every size, uniform, another for each key."""

import math

import numpy as np
import pytest

from mindllm_engine.data.permutation import derive_key, permute

WORD = (1 << 64) - 1


def plain_mix(value: int) -> int:
    """splitmix64 by Python's integers."""
    value = (value + 0x9E3779B97F4A7C15) & WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def plain_permute(position: int, size: int, key: int) -> int:
    bits = max(2, (size - 1).bit_length())
    right_bits = bits // 2
    while True:
        left, right = position >> right_bits, position & ((1 << right_bits) - 1)
        for number in range(6):
            round_key = plain_mix(plain_mix(key) ^ number)
            if number % 2 == 0:
                left ^= plain_mix(right ^ round_key) & ((1 << (bits - right_bits)) - 1)
            else:
                right ^= plain_mix(left ^ round_key) & ((1 << right_bits) - 1)
        position = (left << right_bits) | right
        if position < size:
            return position


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 1000, (1 << 20) + 1, (1 << 40) - 1, 1 << 62])
def test_follows_plain_arithmetic(size: int) -> None:
    positions = np.random.default_rng(size % 97).integers(0, size, 200)
    for key in (0, 3, WORD):
        expected = [plain_permute(position, size, key) for position in positions.tolist()]
        assert permute(positions, size, key).tolist() == expected


def test_keys_depend_on_each_part_and_their_order() -> None:
    assert derive_key(5) == plain_mix(5)
    assert derive_key(5, 7) == plain_mix(plain_mix(5) ^ 7)
    assert derive_key(-1) == derive_key(WORD)
    assert len({derive_key(a, b) for a in range(50) for b in range(50)}) == 2500


@pytest.mark.parametrize("size", [10**6 + 3, 10**9, 1 << 40, (1 << 41) + 12345])
def test_large_permutations_look_random(size: int) -> None:
    """Of successive positions, which is how a plan is read: their places are uniform, and so are the differences, and
    whether one is above the last; of two keys, and of two starts."""
    count = 200_000
    for key, start in ((1, 0), (2, size // 3)):
        places = permute(start + np.arange(count), size, key)
        assert len(np.unique(places)) == count
        cells = np.bincount((places * 1.0 / size * 256).astype(int), minlength=256)
        assert ((cells - count / 256) ** 2 / (count / 256)).sum() < 255 + 5 * math.sqrt(2 * 255)
        steps = np.diff(places) % size
        cells = np.bincount((steps * 1.0 / size * 256).astype(int), minlength=256)
        assert ((cells - count / 256) ** 2 / (count / 256)).sum() < 255 + 5 * math.sqrt(2 * 255)
        rises = int((np.diff(places) > 0).sum())
        assert abs(rises - count / 2) < 5 * math.sqrt(count / 12)
    same = int((permute(np.arange(count), size, 1) == permute(np.arange(count), size, 2)).sum())
    assert same <= 5 + 5 * count / size


def test_small_permutations_are_spread_over_all_there_are() -> None:
    """Of the 24 orders of four things, each comes up about as often as any other, over many keys."""
    orders = [tuple(permute(np.arange(4), 4, key).tolist()) for key in range(4800)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 60  # chi-square with 23 degrees of freedom


@pytest.mark.parametrize("position", [-1, 10, 1 << 62])
def test_positions_outside_are_refused(position: int) -> None:
    with pytest.raises(IndexError, match=f"no position {position} among 10"):
        permute(np.array([0, position]), 10, key=1)


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


def test_positions_that_are_not_aligned() -> None:
    positions = np.frombuffer(b"x" + np.arange(50).tobytes(), np.int64, offset=1)
    assert not positions.flags.aligned
    assert permute(positions, 50, key=1).tolist() == permute(np.arange(50), 50, key=1).tolist()


@pytest.mark.parametrize("size", [2**62, 2**62 + 1, 2**63 - 1])
def test_the_largest_sizes(size: int) -> None:
    positions = np.array([0, 1, size // 2, size - 2, size - 1])
    places = permute(positions, size, key=3)
    assert len(set(places.tolist())) == 5
    assert np.all((places >= 0) & (places < size))
    with pytest.raises(IndexError, match="a permutation of -1 positions"):
        permute(np.arange(0), -1, key=3)
