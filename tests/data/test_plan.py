"""Plans and permutations against what they promise: bijections, exact quotas, and an order that depends on nothing
else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.data.permutation import permute
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts, interleave, share_out
from mindllm_engine.errors import ConfigError, DataError

SOURCES = [
    SourceFacts("en_book", "book", 50_000),
    SourceFacts("zh_book", "book", 30_000),
    SourceFacts("en_web", "web", 80_000),
    SourceFacts("zh_web", "web", 20_000),
]
SEQ_LEN = 64


def make_plan(blocks: list[BlockConfig], samples_needed: int = 0, seed: int = 3) -> Plan:
    return Plan(SOURCES, blocks, SEQ_LEN, seed, samples_needed)


def locate_all(plan: Plan) -> list[tuple[int, int]]:
    sources, indices = plan.locate(np.arange(plan.samples))
    return list(zip(sources.tolist(), indices.tolist(), strict=True))


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


@given(st.integers(0, 10_000), st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_share_out_is_exact_and_fair(total: int, weights: list[float]) -> None:
    array = np.array(weights)
    if array.sum() <= 0:
        return
    parts = share_out(total, array)
    assert parts.sum() == total
    assert np.all(np.abs(parts - total * array / array.sum()) < 1 + 1e-6)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_interleave_takes_each_sample_once_in_order(quotas: list[int]) -> None:
    total = sum(quotas)
    which, counts = interleave(np.arange(total), np.array(quotas))
    for source, quota in enumerate(quotas):
        assert counts[which == source].tolist() == list(range(quota))


@pytest.mark.parametrize("order", ["shuffled", "blocked"])
def test_each_sample_of_each_source_is_taken_once(order: str) -> None:
    plan = make_plan([BlockConfig(tokens=40_000, order=order), BlockConfig(tokens=60_000, order=order)])
    located = locate_all(plan)
    assert len(set(located)) == len(located)
    for source in range(len(SOURCES)):
        indices = sorted(index for where, index in located if where == source)
        assert indices == list(range(len(indices)))


def test_weights_are_kept() -> None:
    plan = make_plan([BlockConfig(tokens=64_000, weights={"en_book": 3, "zh_web": 1})])
    sources = [source for source, _ in locate_all(plan)]
    assert sources.count(0) == 750
    assert sources.count(3) == 250


def test_shuffled_mixes_and_blocked_goes_by_category() -> None:
    shuffled = [source for source, _ in locate_all(make_plan([BlockConfig(tokens=100_000)]))]
    assert len(set(shuffled[:32])) == 4
    blocked = [source for source, _ in locate_all(make_plan([BlockConfig(tokens=100_000, order="blocked")]))]
    categories = [SOURCES[source].category for source in blocked]
    assert categories == sorted(categories)
    assert {0, 1} == set(blocked[:8]), "the languages of a category are interleaved"


def test_locating_part_by_part_is_the_same() -> None:
    plan = make_plan([BlockConfig(tokens=64_000)])
    whole = locate_all(plan)
    for sample in (0, 17, 999):
        source, index = plan.locate(np.array([sample]))
        assert (source[0], index[0]) == whole[sample]


def test_last_block_grows_with_the_run() -> None:
    assert make_plan([BlockConfig()], samples_needed=1234).samples == 1234


def test_changed_past() -> None:
    saved = make_plan([BlockConfig(tokens=64_000), BlockConfig(tokens=6_400)]).state()
    longer = make_plan([BlockConfig(tokens=64_000), BlockConfig(tokens=6_400), BlockConfig(tokens=6_400)])
    assert longer.changed_past(saved, next_sample=1050) is None
    edited = make_plan([BlockConfig(tokens=64_000), BlockConfig(tokens=12_800)])
    assert edited.changed_past(saved, next_sample=1000) is None
    assert "block 1" in (edited.changed_past(saved, next_sample=1001) or "")
    assert "seed" in (make_plan([BlockConfig(tokens=64_000)], seed=4).changed_past(saved, 1) or "")


@pytest.mark.parametrize(
    ("block", "needed", "message"),
    [
        (BlockConfig(tokens=6400, weights={"en_bok": 1.0}), 0, "unknown source en_bok"),
        (BlockConfig(tokens=6400, weights={"en_book": -1.0}), 0, "at least 0"),
        (BlockConfig(tokens=6400, weights={"en_book": float("nan")}), 0, "finite"),
        (BlockConfig(tokens=6400, weights={"en_book": 0.0}), 0, "sum to 0"),
        (BlockConfig(tokens=10), 0, "less than one sample"),
        (BlockConfig(tokens=6400), 101, "holds 100 samples"),
        (BlockConfig(tokens=64_000, weights={"zh_web": 1.0}, max_epochs=2.0), 0, "zh_web would be repeated 3.20 times"),
    ],
)
def test_impossible_plans_are_refused(block: BlockConfig, needed: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan([block], needed)


def test_source_shorter_than_a_sample_is_refused() -> None:
    with pytest.raises(DataError, match="tiny: 64 tokens are fewer"):
        Plan([SourceFacts("tiny", "web", 64)], [BlockConfig(tokens=640)], SEQ_LEN, 1, 0)
