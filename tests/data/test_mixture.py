"""The three orders against brute force: every sample of every source once, and laid out as each order says."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import mindllm_engine._native as _native
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.data.mixture import Block, Order
from tests.data.mixture_oracle import interleave, locate_in_block

QUOTAS = st.lists(st.integers(0, 23), min_size=1, max_size=7)
ORDERS: list[Order] = ["shuffled", "blocked", "chunked"]


def make_block(order: Order, quotas: list[int], key: int = 5, chunk: int = 4) -> Block:
    """Sources of odd id make up one category, those of even id another."""
    used = [source for source, quota in enumerate(quotas) if quota]
    groups = [tuple(used)]
    if order == "blocked":
        groups = [tuple(sorted((s for s in used if s % 2 == odd), key=lambda s: -quotas[s])) for odd in (1, 0)]
    return Block(0, 64, order, chunk, key, tuple(quotas), (0,) * len(quotas), tuple(group for group in groups if group))


def locate(block: Block, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source id and index within the block's share of it, by the native code."""
    return _native.Mixture([block.native()], len(block.quotas), by_token=False).locate(positions)[:2]


def locate_all(block: Block) -> list[tuple[int, int]]:
    sources, indices = locate(block, np.arange(block.samples))
    return list(zip(sources.tolist(), indices.tolist(), strict=True))


@given(st.sampled_from(ORDERS), QUOTAS, st.integers(0, 2**64 - 1), st.integers(1, 30))
def test_each_sample_of_each_source_once(order: Order, quotas: list[int], key: int, chunk: int) -> None:
    located = locate_all(make_block(order, quotas, key, chunk))
    assert sorted(located) == [(source, index) for source, quota in enumerate(quotas) for index in range(quota)]


@given(st.sampled_from(ORDERS), QUOTAS, st.integers(0, 2**64 - 1), st.integers(1, 30))
def test_native_code_follows_the_numpy_version(order: Order, quotas: list[int], key: int, chunk: int) -> None:
    block = make_block(order, quotas, key, chunk)
    positions = np.arange(block.samples)
    for found, expected in zip(locate(block, positions), locate_in_block(block, positions), strict=True):
        assert found.tolist() == expected.tolist()


@given(st.sampled_from(ORDERS), QUOTAS, st.randoms())
def test_part_by_part_is_the_same(order: Order, quotas: list[int], random) -> None:
    block = make_block(order, quotas)
    whole = locate_all(block)
    positions = list(range(block.samples))
    random.shuffle(positions)
    sources, indices = locate(block, np.array(positions, np.int64))
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


@settings(max_examples=300, deadline=None)
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
    sources, indices = locate(make_block(order, [600, 400, 500, 300]), np.arange(1800))
    firsts = indices[sources == 1][:: 4 if order == "chunked" else 1]
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.25


def test_shuffled_is_uniform_over_the_block() -> None:
    quotas = [6000, 3000, 2000, 1000]
    sources, _ = locate(make_block("shuffled", quotas), np.arange(12_000))
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
    sources, indices = locate(block, positions)
    assert len(set(zip(sources.tolist(), indices.tolist(), strict=True))) == len(positions)
    expected = locate_in_block(block, positions)
    assert (sources.tolist(), indices.tolist()) == (expected[0].tolist(), expected[1].tolist())
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
    sources, indices = locate(make_block(order, [0, 0]), np.arange(0))
    assert sources.shape == indices.shape == (0,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_sample": 1},
        {"seq_len": 0},
        {"samples_per_chunk": 0},
        {"quotas": (4, 5)},
        {"quotas": (4, -5, 6)},
        {"quotas": (1 << 62, 1 << 62, 1 << 62)},
        {"firsts": (0, 0)},
        {"firsts": (0, -1, 0)},
        {"categories": ((0, 1),)},
        {"categories": ((0, 1, 2, 2),)},
        {"categories": ((0, 1, 3),)},
        {"categories": ((0, 1, -1),)},
    ],
)
def test_blocks_that_do_not_fit_are_refused(wrong: dict) -> None:
    block = replace(make_block("blocked", [4, 5, 6]), **{"categories": ((0, 1, 2),), **wrong})
    with pytest.raises(IndexError, match="block"):
        _native.Mixture([block.native()], 3, by_token=True)


@pytest.mark.parametrize("sample", [-1, 15, 1 << 62])
def test_samples_outside_the_plan_are_refused(sample: int) -> None:
    with pytest.raises(IndexError, match=f"no sample {sample} among 15"):
        locate(make_block("shuffled", [4, 5, 6]), np.array([3, sample]))


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize(
    "wrong",
    [
        {"seq_len": 1 << 24},
        {"seq_len": 2**63 - 1},
        {"firsts": (0, 2**63 - 1, 0)},
        {"firsts": (0, 2**63 - 1 - 16 - 5, 0)},
    ],
)
def test_positions_beyond_counting_are_refused(wrong: dict, by_token: bool) -> None:
    block = replace(make_block("blocked", [4, 5, 6]), **{"categories": ((0, 1, 2),), "seq_len": 16, **wrong})
    with pytest.raises(IndexError, match="block"):
        _native.Mixture([block.native()], 3, by_token)


def test_quotas_whose_tokens_are_beyond_counting() -> None:
    block = replace(make_block("shuffled", [4, 1 << 60]), seq_len=16).native()
    assert _native.Mixture([block], 2, by_token=False).samples == (1 << 60) + 4
    with pytest.raises(IndexError, match="a block that ends beyond counting"):
        _native.Mixture([block], 2, by_token=True)


def test_an_order_that_there_is_not() -> None:
    block = _native.BlockSpec(
        **{**vars(make_block("shuffled", [4, 5])), "order": _native.Order(7)},
    )
    with pytest.raises(IndexError, match="a block does not fit"):
        _native.Mixture([block], 2, by_token=True)
