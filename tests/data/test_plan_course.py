"""The course of a plan against counting every sample, and what the picture shows of it."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mindllm_engine.data import plan_course
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts
from mindllm_engine.data.plan_course import MOST_SAMPLES, WINDOWS, follow
from mindllm_engine.data.plan_picture import draw, drawing_order, source_colours
from tests.data.mixture_oracle import locate_in_block

SEQ_LEN = 16
NAMES = ["en_book", "en_web", "zh_book", "zh_web", "zh_math"]


def make_plan(blocks: list[BlockConfig], names: list[str] = NAMES, tokens: int = 10**9) -> Plan:
    sources = [
        SourceFacts(name, *name.split("_"), tokens // (number + 1), 100, "") for number, name in enumerate(names)
    ]
    return Plan(sources, blocks, SEQ_LEN, seed=5, samples_needed=0)


def all_sources(plan: Plan) -> np.ndarray:
    """The source of every sample of the plan."""
    return np.concatenate([locate_in_block(block, np.arange(block.samples))[0] for block in plan.blocks])


@pytest.mark.parametrize("order", ["shuffled", "blocked", "chunked"])
@pytest.mark.parametrize("samples", [1, 63, 64, 1000, 30_011])
def test_a_plan_with_small_windows_is_counted_exactly(order: str, samples: int) -> None:
    plan = make_plan([
        BlockConfig(tokens=samples * SEQ_LEN, order=order),
        BlockConfig(tokens=700 * 24, seq_len=24, order=order, languages={"zh": 2, "en": 1}),
    ])  # fmt: skip
    course = follow(plan)
    sources = all_sources(plan)
    consumed = np.concatenate([[0], np.cumsum([SEQ_LEN] * samples + [24] * 700)])
    assert course.blocks == [0, samples * SEQ_LEN]
    assert set(course.blocks) <= set(course.edges.tolist())
    assert (course.edges[0], course.edges[-1]) == (0, consumed[-1])
    assert len(course.shares) == len(course.edges) - 1 <= WINDOWS
    for (begin, end), shares in zip(
        itertools.pairwise(np.searchsorted(consumed, course.edges)), course.shares, strict=True
    ):
        counts = np.bincount(sources[begin:end], minlength=5)
        assert shares.tolist() == pytest.approx((counts / (end - begin)).tolist())
        assert end - begin >= min(64, samples)


def test_a_long_window_is_represented_by_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_course, "MOST_SAMPLES", 10)
    plan = make_plan([BlockConfig(tokens=3000 * SEQ_LEN, order="blocked")])
    course = follow(plan)
    sources = all_sources(plan)
    for (begin, end), shares in zip(itertools.pairwise((course.edges // SEQ_LEN).tolist()), course.shares, strict=True):
        first = begin + (end - begin - 10) // 2
        assert shares.tolist() == pytest.approx((np.bincount(sources[first : first + 10], minlength=5) / 10).tolist())


def test_half_a_trillion_tokens_are_not_walked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan([BlockConfig(tokens=500 * 10**9, order="blocked", max_epochs=1e9)])
    located = []
    locate = plan.locate
    monkeypatch.setattr(plan, "locate", lambda samples: located.append(len(samples)) or locate(samples))
    course = follow(plan)
    assert sum(located) <= WINDOWS * MOST_SAMPLES < plan.samples / 1000
    assert course.edges[-1] == plan.samples * SEQ_LEN
    totals = np.diff(course.edges) @ course.shares
    assert totals == pytest.approx(np.array(plan.blocks[0].quotas) * SEQ_LEN, rel=0.02)


def test_a_block_without_samples_has_no_window() -> None:
    sources = [SourceFacts("en_web", "en", "web", 10**6, 100, "")]
    plan = Plan(sources, [BlockConfig(tokens=100 * SEQ_LEN), BlockConfig()], SEQ_LEN, seed=5, samples_needed=100)
    course = follow(plan)
    assert course.shares.tolist() == [[1.0]]
    assert course.blocks == [0, 1600]


def test_sources_are_drawn_by_language_and_category() -> None:
    plan = make_plan(
        [BlockConfig(tokens=1000 * SEQ_LEN, weights={"en_book": 1, "en_web": 3, "zh_book": 1, "zh_web": 1})]
    )
    assert [NAMES[source] for source in drawing_order(plan)] == ["en_web", "en_book", "zh_web", "zh_book"]
    colours = source_colours(plan)
    assert len(set(colours.values())) == 5
    assert sum(colours[3]) > sum(colours[1])  # the same hue, lighter


@pytest.mark.parametrize("names", [["en_web"], NAMES, ["en_$x", "_en", "zh_$y$", *(f"l{n}_c{n}" for n in range(60))]])
def test_any_plan_can_be_drawn(tmp_path: Path, names: list[str]) -> None:
    names = [name if not name.startswith("_") else f"{name}_web" for name in names]
    sources = [SourceFacts(name, name.split("_")[0], name.split("_")[1], 10**6, 100, "") for name in names]
    blocks = [BlockConfig(tokens=500 * SEQ_LEN, order="blocked"), BlockConfig(tokens=90 * SEQ_LEN, order="chunked")]
    plan = Plan(sources, blocks, SEQ_LEN, seed=5, samples_needed=0)
    draw(plan, follow(plan), tmp_path / "new" / "plan.png")
    content = (tmp_path / "new" / "plan.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 150_000
