"""The three orders against brute force: every sample of every source once, and laid out as each order says."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.data.mixture import Block, Order, interleave, locate_in_block

QUOTAS = st.lists(st.integers(0, 23), min_size=1, max_size=7)
ORDERS: list[Order] = ["shuffled", "blocked", "chunked"]


def make_block(order: Order, quotas: list[int], key: int = 5, chunk: int = 4) -> Block:
    """Sources of odd id make up one category, those of even id another."""
    used = [source for source, quota in enumerate(quotas) if quota]
    groups = [tuple(used)]
    if order == "blocked":
        groups = [tuple(sorted((s for s in used if s % 2 == odd), key=lambda s: -quotas[s])) for odd in (1, 0)]
    return Block(0, 64, order, chunk, key, tuple(quotas), (0,) * len(quotas), tuple(group for group in groups if group))


def locate_all(block: Block) -> list[tuple[int, int]]:
    sources, indices = locate_in_block(block, np.arange(block.samples))
    return list(zip(sources.tolist(), indices.tolist(), strict=True))


@given(st.sampled_from(ORDERS), QUOTAS, st.integers(0, 2**64 - 1), st.integers(1, 30))
def test_each_sample_of_each_source_once(order: Order, quotas: list[int], key: int, chunk: int) -> None:
    located = locate_all(make_block(order, quotas, key, chunk))
    assert sorted(located) == [(source, index) for source, quota in enumerate(quotas) for index in range(quota)]


@given(st.sampled_from(ORDERS), QUOTAS, st.randoms())
def test_part_by_part_is_the_same(order: Order, quotas: list[int], random) -> None:
    block = make_block(order, quotas)
    whole = locate_all(block)
    positions = list(range(block.samples))
    random.shuffle(positions)
    sources, indices = locate_in_block(block, np.array(positions, np.int64))
    assert list(zip(sources.tolist(), indices.tolist(), strict=True)) == [whole[position] for position in positions]


@given(QUOTAS, st.integers(1, 9))
def test_chunked_is_runs_and_then_the_rest(quotas: list[int], chunk: int) -> None:
    located = locate_all(make_block("chunked", quotas, chunk=chunk))
    whole_runs = sum(quota // chunk for quota in quotas)
    for first in range(0, whole_runs * chunk, chunk):
        run = located[first : first + chunk]
        assert len({source for source, _ in run}) == 1
        assert [index for _, index in run] == list(range(run[0][1], run[0][1] + chunk))
        assert run[0][1] % chunk == 0
    rest = Counter(source for source, _ in located[whole_runs * chunk :])
    assert rest == Counter({source: quota % chunk for source, quota in enumerate(quotas)})


@given(QUOTAS)
def test_blocked_goes_category_after_category(quotas: list[int]) -> None:
    parities = [source % 2 for source, _ in locate_all(make_block("blocked", quotas))]
    assert parities == sorted(parities, reverse=True)


def harmonic(n: int) -> Fraction:
    return sum((Fraction(1, k) for k in range(1, n + 1)), Fraction(0))


@settings(max_examples=300)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=9))
def test_every_prefix_holds_each_sources_share(quotas: list[int]) -> None:
    quotas = sorted(quotas, reverse=True)
    total, n = sum(quotas), sum(quota > 0 for quota in quotas)
    which, counts = interleave(np.arange(total), np.array(quotas))
    bound = {0: Fraction(0), 1: Fraction(0), 2: Fraction(1, 2), 3: Fraction(1)}.get(n, (1 + harmonic(n - 1)) / 2)
    seen = [0] * len(quotas)
    for position, (source, count) in enumerate(zip(which.tolist(), counts.tolist(), strict=True)):
        assert count == seen[source], "a source's samples are counted in order"
        seen[source] += 1
        for quota, got in zip(quotas, seen, strict=True):
            assert abs(got - Fraction((position + 1) * quota, total)) <= bound
    assert seen == quotas


def test_chinese_and_english_of_the_paper_alternate_two_to_three() -> None:
    which, _ = interleave(np.arange(1000), np.array([600, 400]))
    for first in range(0, 1000, 5):
        assert np.bincount(which[first : first + 5]).tolist() == [3, 2]


@pytest.mark.parametrize("order", ORDERS)
def test_samples_of_a_source_do_not_come_in_their_order_of_reading(order: Order) -> None:
    sources, indices = locate_in_block(make_block(order, [600, 400, 500, 300]), np.arange(1800))
    firsts = indices[sources == 1][:: 4 if order == "chunked" else 1]
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.25


def test_shuffled_is_uniform_over_the_block() -> None:
    quotas = [6000, 3000, 2000, 1000]
    sources, _ = locate_in_block(make_block("shuffled", quotas), np.arange(12_000))
    # Twelve stretches of a thousand samples: chi-square with 33 degrees of freedom.
    table = np.stack([np.bincount(part, minlength=4) for part in np.split(sources, 12)])
    expected = np.array(quotas) / 12
    assert ((table - expected) ** 2 / expected).sum() < 70


@pytest.mark.parametrize("order", ORDERS)
def test_quotas_beyond_a_trillion_samples(order: Order) -> None:
    quotas = [1 << 40, (1 << 40) - 3, 0, 1 << 39]
    block = make_block(order, quotas)
    rng = np.random.default_rng(1)
    positions = np.unique(np.concatenate([[0, block.samples - 1], rng.integers(0, block.samples, 2000)]))
    sources, indices = locate_in_block(block, positions)
    assert set(zip(sources.tolist(), indices.tolist(), strict=True)).__len__() == len(positions)
    assert np.all((indices >= 0) & (indices < np.array(quotas)[sources]))
    if order != "blocked":
        shares = np.bincount(sources, minlength=4) / len(sources)
        assert np.allclose(shares, np.array(quotas) / sum(quotas), atol=0.05)


def test_interleaving_beyond_a_trillion_samples_is_exact() -> None:
    quotas = np.array([(1 << 41) + 7, 1 << 40, 12_345])
    total = int(quotas.sum())
    positions = np.array([0, 1, total // 3, total // 2, total - 2, total - 1])
    which, counts = interleave(positions, quotas)
    for position, source, count in zip(positions.tolist(), which.tolist(), counts.tolist(), strict=True):
        assert abs(count - Fraction(position * int(quotas[source]), total)) <= 2
    assert (which[-1], counts[-1]) in {(source, int(quota) - 1) for source, quota in enumerate(quotas)}


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_without_samples(order: Order) -> None:
    sources, indices = locate_in_block(make_block(order, [0, 0]), np.arange(0))
    assert sources.shape == indices.shape == (0,)
