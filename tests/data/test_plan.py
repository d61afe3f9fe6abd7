"""Plans against what they promise: exact shares, one reading of each sample, an order that nothing else changes."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.data.plan import BlockConfig, Packing, Plan, SourceFacts
from mindllm_engine.data.shares import share_out, source_shares
from mindllm_engine.errors import ConfigError, DataError, MindLLMError

SEQ_LEN = 64


def source(name: str, tokens: int, epoch_samples: dict[int, int] | None = None) -> SourceFacts:
    """`en_book` is a book in English."""
    language, category = name.split("_")[:2]
    return SourceFacts(name, language, category, tokens, tokens // 100, f"content of {name}", epoch_samples or {})


SOURCES = [source("en_book", 50_000), source("zh_book", 30_000), source("en_web", 80_000), source("zh_web", 20_000)]


def make_plan(
    blocks: list[BlockConfig], samples_needed: int = 0, seed: int = 3, sources: list[SourceFacts] = SOURCES
) -> Plan:
    return Plan(sources, blocks, SEQ_LEN, seed, samples_needed)


def named_order(plan: Plan) -> list[tuple[str, int]]:
    """(name, start) of every sample."""
    ids, starts = plan.locate(np.arange(plan.samples))
    return [(plan.sources[number].name, start) for number, start in zip(ids.tolist(), starts.tolist(), strict=True)]


# -- Shares and quotas ---


@given(st.integers(0, 10**12), st.lists(st.fractions(0, 1000), min_size=1, max_size=20).filter(any))
def test_share_out_is_exact_and_fair(total: int, weights: list[Fraction]) -> None:
    shares = {f"s{number}": weight / sum(weights) for number, weight in enumerate(weights)}
    parts = share_out(total, shares)
    assert sum(parts.values()) == total
    assert all(abs(parts[name] - total * shares[name]) < 1 for name in shares)
    # Largest remainders: whoever was rounded up had no smaller remainder than whoever was not.
    remainders = {name: total * share % 1 for name, share in shares.items()}
    up = [remainders[name] for name in shares if parts[name] > total * shares[name]]
    down = [remainders[name] for name in shares if parts[name] <= total * shares[name] and remainders[name]]
    assert not up or not down or min(up) >= max(down)


def test_share_out_of_numbers_beyond_floats() -> None:
    total = (1 << 61) + 1
    parts = share_out(total, {"a": Fraction(1, 3), "b": Fraction(2, 3)})
    assert sum(parts.values()) == total
    assert abs(3 * parts["a"] - total) < 3


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, [50, 30, 80, 20]),
        ({"weights": {"en_book": 3, "zh_web": 1}}, [3, 0, 0, 1]),
        ({"languages": {"zh": 1, "en": 1.5}}, [1.5 * 50 / 130, 0.6, 1.5 * 80 / 130, 0.4]),
        ({"languages": {"zh": 1}}, [0, 30, 0, 20]),
        ({"languages": {"zh": 1, "en": 0}}, [0, 30, 0, 20]),
        ({"categories": {"book": 1, "web": 3}}, [50 / 80, 30 / 80, 3 * 0.8, 3 * 0.2]),
        ({"languages": {"zh": 1, "en": 1.5}, "categories": {"book": 1, "web": 3}}, [1.5, 1, 4.5, 3]),
        ({"languages": {"zh": 1, "en": 3}, "weights": {"zh_book": 1, "zh_web": 4, "en_web": 9}}, [0, 0.2, 3, 0.8]),
    ],
)
def test_shares_follow_the_ratios(block: dict[str, Any], expected: list[float]) -> None:
    shares = source_shares(BlockConfig(**block), SOURCES)
    found = [float(shares.get(source.name, 0)) for source in SOURCES]
    assert sum(shares.values()) == 1
    assert found == pytest.approx([value / sum(expected) for value in expected])


def test_a_category_that_one_language_lacks_gives_its_share_to_the_others_of_that_language() -> None:
    sources = [*SOURCES, source("zh_qa", 5_000)]
    shares = source_shares(
        BlockConfig(languages={"zh": 1, "en": 1}, categories={"book": 1, "web": 1, "qa": 2}), sources
    )
    assert {name: float(share) for name, share in shares.items()} == pytest.approx(
        {"en_book": 0.25, "en_web": 0.25, "zh_book": 0.125, "zh_web": 0.125, "zh_qa": 0.25}
    )


def test_quotas_are_the_shares_of_the_budget() -> None:
    block = make_plan([BlockConfig(tokens=64_000, weights={"en_book": 3, "zh_web": 1}, max_epochs=9)]).blocks[0]
    assert block.quotas == (750, 0, 0, 250)
    assert block.samples == 1000


def test_last_block_grows_with_the_run() -> None:
    plan = make_plan([BlockConfig(tokens=6400), BlockConfig(seq_len=32)], samples_needed=1234)
    assert [block.samples for block in plan.blocks] == [100, 1134]
    assert make_plan([BlockConfig(tokens=6400), BlockConfig()], samples_needed=7).samples == 100


# -- Where samples lie ---


@pytest.mark.parametrize("order", ["shuffled", "blocked", "chunked"])
def test_blocks_read_each_source_on_where_the_last_stopped(order: Any) -> None:
    """Contiguous: with other lengths of samples, the shares still cover every token of the stream once."""
    blocks = [
        BlockConfig(tokens=40_000, order=order),
        BlockConfig(tokens=30_000, order=order, seq_len=16),
        BlockConfig(tokens=50_000, order=order, weights={"en_web": 2, "zh_book": 1}),
    ]
    plan = make_plan(blocks)
    ids, starts = plan.locate(np.arange(plan.samples))
    lengths = np.array([plan.tokens_in(sample, 1) for sample in range(plan.samples)])
    assert plan.samples == 625 + 1875 + 781
    assert plan.tokens_in(0, plan.samples) == lengths.sum() == 625 * 64 + 1875 * 16 + 781 * 64
    assert plan.tokens_in(600, 50) == 25 * 64 + 25 * 16
    for number in range(len(SOURCES)):
        mine = np.argsort(starts[ids == number])
        ends = np.cumsum(lengths[ids == number][mine])
        assert np.array_equal(starts[ids == number][mine], ends - lengths[ids == number][mine])


def test_best_fit_counts_samples_for_each_length() -> None:
    sources = [source("en_book", 50_000, {64: 800, 32: 1600}), source("zh_book", 50_000, {64: 900, 32: 1500})]
    blocks = [BlockConfig(tokens=n, seq_len=length) for n, length in ((32_000, 64), (16_000, 32), (32_000, None))]
    plan = Plan(sources, blocks, SEQ_LEN, 1, 0, "best_fit")
    assert [block.firsts for block in plan.blocks] == [(0, 0), (0, 0), (250, 250)]
    ids, starts = plan.locate(np.arange(plan.samples))
    for number, samples in itertools.product((0, 1), (range(500), range(500, 1000))):
        inside = ids[samples.start : samples.stop] == number
        assert sorted(starts[samples.start : samples.stop][inside].tolist()) == list(range(250))
    assert sorted(starts[1000:][ids[1000:] == 0].tolist()) == list(range(250, 500))


def test_epochs_of_all_lengths_add_up() -> None:
    facts = [source("en_book", 50_000, {64: 500, 32: 1000})]
    blocks = [BlockConfig(tokens=400 * 64, max_epochs=1), BlockConfig(tokens=300 * 32, seq_len=32, max_epochs=1)]
    with pytest.raises(ConfigError, match=r"blocks\[1\]: source en_book would be repeated 1\.10 times"):
        Plan(facts, blocks, SEQ_LEN, 1, 0, "best_fit")


@pytest.mark.parametrize("order", ["shuffled", "blocked", "chunked"])
def test_plans_of_an_exabyte_do_not_overflow(order: Any) -> None:
    sources = [source("en_book", 1 << 58), source("zh_book", 1 << 57), source("en_web", (1 << 59) + 77)]
    blocks = [BlockConfig(tokens=1 << 60, order=order), BlockConfig(tokens=(1 << 61) + 12_345, order=order)]
    plan = make_plan(blocks, sources=sources)
    assert plan.samples == (1 << 54) + (1 << 55) + 12_345 // 64
    samples = np.array([0, 1, (1 << 54) - 1, 1 << 54, plan.samples - 1])
    ids, starts = plan.locate(samples)
    for sample, number, start in zip(samples.tolist(), ids.tolist(), starts.tolist(), strict=True):
        block = plan.blocks[sample >= plan.blocks[1].first_sample]
        assert block.firsts[number] <= start < block.firsts[number] + block.quotas[number] * 64
        assert (start - block.firsts[number]) % 64 == 0
    assert plan.tokens_in(0, plan.samples) == plan.samples * 64


def test_shuffled_mixes_and_blocked_goes_by_category() -> None:
    names = [name for name, _ in named_order(make_plan([BlockConfig(tokens=100_000)]))]
    assert len(set(names[:32])) == 4
    for categories, expected in (({}, ["book", "web"]), ({"web": 1, "book": 1}, ["web", "book"])):
        config = BlockConfig(tokens=100_000, order="blocked", categories=categories)
        names = [name for name, _ in named_order(make_plan([config]))]
        assert [key for key, _ in itertools.groupby(name.split("_")[1] for name in names)] == expected
        assert {name.split("_")[0] for name in names[:8]} == {"en", "zh"}, "the languages are interleaved"


def test_samples_outside_the_plan_do_not_exist() -> None:
    plan = make_plan([BlockConfig(tokens=6400)])
    for sample in (-1, 100):
        with pytest.raises(IndexError):
            plan.locate(np.array([sample]))


# -- What the order depends on ---

BLOCKS = [
    BlockConfig(tokens=64_000, languages={"zh": 1, "en": 1.5}),
    BlockConfig(tokens=32_000, order="blocked", categories={"web": 2, "book": 1}),
    BlockConfig(tokens=32_000, order="chunked", weights={"en_book": 1, "zh_book": 1}),
]


@pytest.mark.parametrize("permuted", [*itertools.permutations(range(4))])
def test_order_of_the_sources_does_not_matter(permuted: tuple[int, ...]) -> None:
    sources = [SOURCES[number] for number in permuted]
    plan, reference = make_plan(BLOCKS, sources=sources), make_plan(BLOCKS)
    assert named_order(plan) == named_order(reference)
    assert plan.hash == reference.hash
    assert dict(zip((s.name for s in sources), plan.source_keys, strict=True)) == dict(
        zip((s.name for s in SOURCES), reference.source_keys, strict=True)
    )


def test_sources_with_equal_claims_are_told_apart_by_name() -> None:
    sources = [source(f"en_book_{letter}", 10_000) for letter in "abc"]
    for order in itertools.permutations(sources):
        plan = make_plan([BlockConfig(tokens=100 * SEQ_LEN)], sources=list(order))
        quotas = dict(zip((s.name for s in order), plan.blocks[0].quotas, strict=True))
        assert quotas == {"en_book_a": 34, "en_book_b": 33, "en_book_c": 33}


def test_appended_sources_leave_earlier_blocks_alone() -> None:
    blocks = [dataclasses.replace(block, weights=block.weights or {s.name: 1 for s in SOURCES}) for block in BLOCKS]
    before = make_plan(blocks)
    more = [source("aa_news", 40_000), *SOURCES, source("zz_news", 40_000)]
    after = make_plan([*blocks, BlockConfig(tokens=64_000)], sources=more)
    assert after.changed_past(before.state(), before.samples) is None
    assert named_order(after)[: before.samples] == named_order(before)
    assert {"aa_news", "zz_news"} <= {name for name, _ in named_order(after)[before.samples :]}


def test_seed_names_the_order() -> None:
    one, other = make_plan(BLOCKS), make_plan(BLOCKS, seed=4)
    assert named_order(one) != named_order(other)
    assert one.hash != other.hash
    assert set(one.source_keys).isdisjoint(other.source_keys)
    assert len({*one.source_keys, *(block.key for block in one.blocks)}) == 7


def test_state_survives_json() -> None:
    plan = make_plan(BLOCKS)
    saved = json.loads(json.dumps(plan.state()))
    assert saved == plan.state()
    assert plan.changed_past(saved, plan.samples) is None


# -- A changed past ---


def edited(number: int, **changes: Any) -> list[BlockConfig]:
    return [dataclasses.replace(block, **changes) if i == number else block for i, block in enumerate(BLOCKS)]


@pytest.mark.parametrize(
    ("number", "changes", "names"),
    [
        (0, {"tokens": 70_400}, "quota of en_book was 231 and is 254"),
        (0, {"seq_len": 32}, "seq_len was 64 and is 32"),
        (0, {"order": "chunked"}, "order was shuffled and is chunked"),
        (0, {"languages": {"zh": 1, "en": 1}}, "quota of en_book"),
        (0, {"weights": {"en_book": 1, "zh_book": 1}}, "quota of en_book"),
        (1, {"categories": {"book": 1, "web": 2}}, "categories was"),
        (1, {"categories": {"web": 1, "book": 1}}, "quota of en_book"),
        (2, {"samples_per_chunk": 8}, "samples_per_chunk was 4 and is 8"),
        (2, {"weights": {"en_book": 1, "zh_web": 1}}, "quota of zh_book was 250 and is 0"),
    ],
)
def test_a_block_that_has_begun_may_not_change(number: int, changes: dict[str, Any], names: str) -> None:
    saved = make_plan(BLOCKS).state()
    first = saved["blocks"][number]["first_sample"]
    plan = make_plan(edited(number, **changes, max_epochs=50))
    later = make_plan(edited(number, **changes, max_epochs=50)[: number + 1])
    if first:
        assert plan.changed_past(saved, first) is None, "it has not begun"
        assert later.changed_past(saved, first) is None
    message = plan.changed_past(saved, first + 1) or ""
    assert message.startswith(f"block {number} has begun")
    assert names in message
    assert "\n" not in message


def test_caps_and_unused_lengths_of_chunks_may_change() -> None:
    saved = make_plan(BLOCKS).state()
    for number in (0, 1):
        plan = make_plan(edited(number, samples_per_chunk=9, max_epochs=7, max_epochs_of={"en_web": 9}))
        assert plan.changed_past(saved, plan.samples) is None


def test_blocks_that_have_not_begun_may_go_and_come() -> None:
    saved = make_plan(BLOCKS).state()
    assert make_plan(BLOCKS[:1]).changed_past(saved, 1000) is None
    assert make_plan([*BLOCKS, BlockConfig(tokens=6400)]).changed_past(saved, 2000) is None
    assert make_plan(BLOCKS[:1]).changed_past(saved, 1001) == "block 1 has begun and is gone"


def test_seed_and_packing_may_not_change() -> None:
    saved = make_plan(BLOCKS).state()
    assert make_plan(BLOCKS, seed=4).changed_past(saved, 1) == "seed was 3 and is 4"
    sources = [dataclasses.replace(s, epoch_samples={64: 500}) for s in SOURCES]
    packed = Plan(sources, BLOCKS, SEQ_LEN, 3, 0, "best_fit")
    assert packed.changed_past(saved, 1) == "packing was contiguous and is best_fit"
    assert packed.changed_past(saved, 0) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("content", "other", "its content has changed (its hash was content of zh_book and is other)"),
        ("tokens", 30_064, "tokens was 30000 and is 30064"),
        ("documents", 7, "documents was 300 and is 7"),
        ("language", "en", "language was zh and is en"),
        ("category", "web", "category was book and is web"),
    ],
)
def test_a_source_that_has_been_read_may_not_change(field: str, value: Any, message: str) -> None:
    blocks = [
        BlockConfig(tokens=6400, weights={"en_book": 1}),
        BlockConfig(tokens=6400, weights={"zh_book": 1, "en_web": 1}),
    ]
    changed = [dataclasses.replace(s, **{field: value}) if s.name == "zh_book" else s for s in SOURCES]
    saved, plan = make_plan(blocks).state(), make_plan(blocks, sources=changed)
    assert plan.changed_past(saved, 100) is None, "not read yet"
    assert plan.changed_past(saved, 101) == f"source zh_book, read by block 1: {message}"


def test_a_source_that_has_been_read_may_not_go() -> None:
    blocks = [BlockConfig(tokens=6400, weights={name: 1}) for name in ("en_book", "zh_book")]
    saved, others = make_plan(blocks).state(), [s for s in SOURCES if s.name != "zh_book"]
    assert make_plan(blocks[:1], sources=others).changed_past(saved, 100) is None
    gone = make_plan([blocks[0], BlockConfig(tokens=6400)], sources=others)
    assert gone.changed_past(saved, 100) is None
    assert gone.changed_past(saved, 101) == "block 1 has begun, and its quota of en_book was 0 and is 34"


def test_older_and_damaged_states_are_refused() -> None:
    plan = make_plan(BLOCKS)
    older = {"seed": 3, "seq_len": 64, "sources": [], "blocks": []}
    assert "version of the addressing was 1 and is 2" in (plan.changed_past(older, 1) or "")
    for damage in ({"blocks": [{}]}, {"blocks": None}, {"sources": {}}):
        assert plan.changed_past(plan.state() | damage, 1) == "the saved plan is incomplete"


# -- What is refused ---


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"weights": {"en_bok": 1.0}}, "data.blocks[0].weights: unknown source en_bok; did you mean en_book?"),
        ({"weights": {"q": 1}}, "unknown source q; the sources are en_book, en_web, zh_book, zh_web"),
        ({"languages": {"fr": 1}}, "data.blocks[0].languages: unknown language fr; the languages are en, zh"),
        ({"categories": {"books": 1}}, "categories: unknown category books; did you mean book?"),
        ({"max_epochs_of": {"zh_boo": 1}}, "max_epochs_of: unknown source zh_boo; did you mean zh_book?"),
        ({"weights": {"en_book": -1.0}}, "weights.en_book: -1.0 must be a finite number of at least 0"),
        ({"weights": {"en_book": float("nan")}}, "weights.en_book: nan must be a finite number"),
        ({"languages": {"zh": float("inf")}}, "languages.zh: inf must be a finite number"),
        ({"categories": {"web": -0.5}}, "categories.web: -0.5 must be"),
        ({"max_epochs_of": {"en_book": -1}}, "max_epochs_of.en_book: -1 must be"),
        ({"max_epochs": float("nan")}, "max_epochs: nan must be a number of at least 0"),
        ({"max_epochs": -1.0}, "max_epochs: -1.0 must be a number"),
        ({"weights": {"en_book": 0.0}}, "data.blocks[0].weights: the ratios sum to 0"),
        ({"languages": {"en": 0.0, "zh": 0}}, "languages: the ratios sum to 0"),
        (
            {"languages": {"en": 1}, "weights": {"zh_book": 2}},
            "zh_book: 2, but its language zh has no share in",
        ),
        (
            {"categories": {"web": 1}, "weights": {"zh_book": 2, "zh_web": 1}},
            "zh_book: 2, but its category book has no share in categories; add it there",
        ),
        (
            {"languages": {"en": 1, "zh": 1}, "weights": {"en_book": 1}},
            "languages.zh: 1, but every source of it is left out",
        ),
        (
            {"categories": {"web": 1, "book": 1}, "weights": {"en_book": 1}},
            "categories.web: 1, but every source of it is left out",
        ),
        ({"tokens": 63}, "data.blocks[0].tokens: 63 is less than one sample of 64 tokens"),
        ({"tokens": -5}, "tokens: -5 is less than one sample"),
        ({"tokens": 1 << 62}, "beyond counting"),
        ({"tokens": 6400, "seq_len": 0}, "seq_len: 0 must be at least 1"),
        ({"tokens": 6400, "seq_len": -2}, "seq_len: -2 must be at least 1"),
        ({"samples_per_chunk": 0}, "samples_per_chunk: 0 must be at least 1"),
        ({"samples_per_chunk": 1 << 62}, "samples_per_chunk: 4611686018427387904 must be at least 1, and countable"),
        (
            {"tokens": 64_000, "weights": {"zh_web": 1}, "max_epochs": 2.0},
            "data.blocks[0]: source zh_web would be repeated 3.20 times, above max_epochs = 2.0; lower its share",
        ),
        (
            {"tokens": 64_000, "weights": {"zh_web": 1}, "max_epochs_of": {"zh_web": 3}},
            "source zh_web would be repeated 3.20 times, above max_epochs_of.zh_web = 3",
        ),
        ({"tokens": 180_032, "max_epochs": 1}, "would be repeated 1.01 times, above max_epochs = 1;"),
    ],
)
def test_impossible_blocks_are_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan([BlockConfig(**({"tokens": 6400} | block))])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_plan([]), "one block at least"),
        (lambda: make_plan([BlockConfig(), BlockConfig(tokens=6400)]), "blocks[0].tokens: only the last block may be"),
        (lambda: make_plan([BlockConfig(tokens=6400)], 101), "holds 100 samples but train.steps needs 101"),
        (
            lambda: make_plan([BlockConfig(tokens=6400)], sources=[*SOURCES, SOURCES[0]]),
            "two sources are called",
        ),
        (lambda: make_plan([BlockConfig(max_epochs=float("inf"))], 1 << 57), "beyond counting"),
        (lambda: make_plan([BlockConfig(tokens=640)], sources=[source("en_book", 64)]), "64 tokens are fewer than one"),
        (lambda: make_plan([BlockConfig(tokens=640)], sources=[source("en_book", 0)]), "0 tokens are fewer than one"),
        (
            lambda: Plan([source("en_book", 640, {64: 0})], [BlockConfig(tokens=640)], SEQ_LEN, 1, 0, "best_fit"),
            "source en_book: its 640 tokens pack into no sample of seq_len 64",
        ),
    ],
)
def test_impossible_plans_are_refused(make: Callable[[], Plan], message: str) -> None:
    with pytest.raises(MindLLMError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_short_source_that_no_block_draws_from_is_no_mistake() -> None:
    sources = [*SOURCES, source("en_tiny", 10)]
    block = BlockConfig(tokens=6400, categories={"book": 1, "web": 1})
    assert make_plan([block], sources=sources).blocks[0].quotas[-1] == 0
    with pytest.raises(DataError, match="source en_tiny: 10 tokens are fewer"):
        make_plan([block, BlockConfig(tokens=6400)], sources=sources)


def test_one_epoch_to_the_last_token_is_allowed() -> None:
    cases: list[tuple[Packing, SourceFacts]] = [
        ("contiguous", source("en_book", 6400)),
        ("best_fit", source("en_book", 6500, {64: 100})),
    ]
    for packing, facts in cases:
        assert Plan([facts], [BlockConfig(tokens=6400, max_epochs=1)], SEQ_LEN, 1, 0, packing).samples == 100
        with pytest.raises(ConfigError, match=r"repeated 1\.01 times"):
            Plan([facts], [BlockConfig(tokens=6464, max_epochs=1)], SEQ_LEN, 1, 0, packing)


def test_a_cap_counts_only_the_sources_of_its_block() -> None:
    blocks = [
        BlockConfig(tokens=128_000, weights={"zh_web": 1}, max_epochs=7),
        BlockConfig(tokens=64_000, weights={"en_web": 1}),
    ]
    assert make_plan(blocks).samples == 3000
    with pytest.raises(ConfigError, match=r"blocks\[1\]: source zh_web would be repeated 6\.\d\d times"):
        make_plan([blocks[0], BlockConfig(tokens=6400)])


def test_an_infinite_cap_is_none() -> None:
    forever = BlockConfig(tokens=64_000, weights={"zh_web": 1}, max_epochs_of={"zh_web": float("inf")})
    assert make_plan([forever]).samples == 1000


def test_a_cap_is_the_decimal_number_that_was_written() -> None:
    """96 samples of 100 tokens from 10,000 are 0.96 epochs, which is more than the float nearest to 0.96."""
    source = SourceFacts("web", "en", "web", 10_000, 10, "c")
    assert Fraction(96, 100) > Fraction(0.96)
    plan = Plan([source], [BlockConfig(tokens=9600, max_epochs=0.96)], 100, 1, 96)
    assert plan.samples == 96
    with pytest.raises(ConfigError, match=r"repeated 0\.97 times, above max_epochs = 0\.96"):
        Plan([source], [BlockConfig(tokens=9700, max_epochs=0.96)], 100, 1, 97)
