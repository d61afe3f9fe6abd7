"""The tokenizer's training sample: equal parts of languages and sources, to the budget, the same for a seed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample

Write = Callable[[Path, list[str]], Path]


@pytest.fixture
def sources(tmp_path: Path, write_records: Write) -> list[SampledSource]:
    """Two English sources, one of them tiny, and one Chinese; every document is 100 bytes and names its source."""

    def source(name: str, lang: str, count: int) -> SampledSource:
        texts = [f"{name} {number:05d}".ljust(100, ".") for number in range(count)]
        paths = [write_records(tmp_path / f"{name}{part}.jsonl", texts[part::2]) for part in range(2)]
        return SampledSource(name, lang, list(map(str, paths)))

    return [source("en_big", "en", 5000), source("en_tiny", "en", 20), source("zh_only", "zh", 5000)]


def _count(texts: list[str]) -> dict[str, int]:
    return {name: sum(text.startswith(name) for text in texts) for name in ("en_big", "en_tiny", "zh_only")}


def test_languages_and_sources_are_balanced(sources: list[SampledSource]) -> None:
    assert _count(list(balanced_sample(sources, 4_000, seed=0))) == {"en_big": 10, "en_tiny": 10, "zh_only": 20}


def test_a_small_source_leaves_its_share_to_its_language(sources: list[SampledSource]) -> None:
    assert _count(list(balanced_sample(sources, 40_000, seed=0))) == {"en_big": 180, "en_tiny": 20, "zh_only": 200}


def test_all_is_taken_where_the_budget_is_larger(sources: list[SampledSource]) -> None:
    texts = list(balanced_sample(sources, 10_000_000, seed=0))
    assert _count(texts) == {"en_big": 5000, "en_tiny": 20, "zh_only": 5000}
    assert len(set(texts)) == len(texts)


def test_the_seed_decides_and_the_whole_source_is_sampled(sources: list[SampledSource]) -> None:
    first = list(balanced_sample(sources, 40_000, seed=0))
    assert first == list(balanced_sample(sources, 40_000, seed=0))
    assert first != list(balanced_sample(sources, 40_000, seed=1))
    numbers = [int(text.split()[1].strip(".")) for text in first if text.startswith("zh_only")]
    assert min(numbers) < 1000 < 4000 < max(numbers)


def test_a_long_document_does_not_fill_the_share(tmp_path: Path, write_records: Write) -> None:
    path = write_records(tmp_path / "a.jsonl", ["x" * 1_000_000, *["y" * 1000] * 100])
    texts = list(balanced_sample([SampledSource("a", "en", [str(path)])], 100_000, seed=0))
    assert max(map(len, texts)) <= 20_000
    assert sum(map(len, texts)) >= 100_000
