"""The step self-repetition on texts made here and on real ones."""

import gzip
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from datatrove.data import Document

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.steps.self_repetition import RepetitionThresholds, SelfRepetition, SelfRepetitionConfig
from mindllm_engine.errors import ConfigError

ZH = (
    "清晨的集市上，卖豆腐的老人推着小车慢慢走过石桥。河边有几个孩子在放风筝，线轴转得飞快。茶馆刚刚开门，掌柜把炉火"
    "捅旺，水汽从壶嘴里冒出来。远处传来火车的汽笛声，惊起一群白鹭。邮差骑着自行车，在每户门前停一停，又匆匆离开。"
)
EN = (
    "The ferry left before dawn with two crates of oranges and a broken clock. Nobody on deck spoke, since the wind "
    "had turned and rain was coming from the north. A dog slept under the bench where the captain kept his maps. By "
    "noon the harbour was a thin grey line, and somebody began to sing about a lighthouse that never had a keeper."
)


def run(config: SelfRepetitionConfig, text: str, **metadata: str) -> tuple[Drop | None, str, dict[str, int]]:
    step = SelfRepetition(config)
    document = Document(text, "web/0:1", metadata=dict(metadata))
    drop = step.apply(document)
    return drop, document.text, step.ledger.step(step.name).counts


@pytest.mark.parametrize(("text", "lang"), [(ZH, "zh"), (EN, "en")])
def test_a_text_without_repetition_passes_unchanged(text: str, lang: str) -> None:
    assert run(SelfRepetitionConfig(), text, lang=lang) == (None, text, {})


@pytest.mark.parametrize(
    ("text", "lang", "reason"),
    [
        (ZH + "买它买它" * 20, "zh", "continuous repetition"),
        (EN + " buy now" * 30, "en", "continuous repetition"),
        ("\n\n".join([ZH[:50], ZH[50:], ZH[:50], ZH[:50]]), "zh", "duplicate paragraphs"),
        ("\n".join([ZH[:40], "登录", ZH[40:], "登录", "登录"]), "zh", "duplicate lines"),
        ("\n".join([ZH[:60], ZH[60:], ZH[:60]]), "zh", "duplicate lines"),
        ("优惠促销" + "优惠促销".join(ZH[i : i + 8] for i in range(0, 104, 8)), "zh", "top 2-gram"),
        (ZH + ZH[20:80].replace("，", "、") + ZH[:20], "zh", "duplicate 9-grams"),
        (EN + " Indeed: " + EN[:200], "en", "duplicate 5-grams"),
        ("", "en", "empty"),
    ],
)
def test_each_kind_of_repetition_is_dropped_for_its_reason(text: str, lang: str, reason: str) -> None:
    drop, _, _ = run(SelfRepetitionConfig(), text, lang=lang)
    assert drop is not None
    assert drop.reason == reason
    assert drop.excerpt is None or drop.excerpt in text


def test_the_excerpt_shows_what_is_repeated() -> None:
    lines = [f"{ZH[i : i + 9]}{i}" for i in range(90)]
    text = "\n".join(lines[:50] + lines[49:50] * 30)
    drop, _, _ = run(SelfRepetitionConfig(), text, lang="zh")
    assert drop is not None
    assert drop.excerpt is not None
    assert drop.excerpt.count(lines[49]) > 5
    assert drop.detail == f"{30 / 80:.3f} of {len(text)} characters, above 0.3"


def test_a_phrase_in_a_row_is_shortened_and_counted() -> None:
    text = ZH[:60] + "哈哈哈哈哈哈哈哈" + ZH[60:]
    drop, shortened, counts = run(SelfRepetitionConfig(), text, lang="zh")
    assert drop is None
    assert shortened == ZH[:60] + "哈哈" + ZH[60:]
    assert counts == {"documents shortened": 1, "characters removed": 6}


def test_pages_of_unlisted_sites_are_held_to_stricter_thresholds(tmp_path: Path) -> None:
    (tmp_path / "sites.txt").write_text("# good ones\nwww.News.example.cn\n\nexample.org  # all of it\n")
    config = SelfRepetitionConfig(listed_sites=[str(tmp_path / "sites.txt"), "gov.example"])
    text = "\n".join(ZH[i * 12 : i * 12 + 12] + ("\n上一页" if i % 2 else "") for i in range(9))
    verdicts = {
        url: run(config, text, lang="zh", **({"url": url} if url else {}))[0] is None
        for url in (
            "",
            "https://news.example.cn/a",
            "http://sub.news.example.cn:8080/",
            "example.org/page",
            "https://EXAMPLE.org./",
            "https://x.gov.example/",
            "https://badexample.org/",
            "https://example.cn/",
            "https://[broken/",
        )
    }
    assert verdicts == {url: i < 6 for i, url in enumerate(verdicts)}
    assert run(SelfRepetitionConfig(), text, lang="zh", url="https://example.cn/")[0] is None


def test_curated_text_is_held_to_looser_thresholds_but_not_to_none() -> None:
    code = "\n".join(f"    def name_{i}(self):\n        return self._{i}\n" for i in range(30))
    assert run(SelfRepetitionConfig(), code, lang="en", category="code")[0] is None
    assert run(SelfRepetitionConfig(), code, lang="en", category="webtext")[0] is not None
    assert run(SelfRepetitionConfig(), (EN + "\n1 2\n") * 30, lang="en", category="code")[0] is not None


def test_a_threshold_of_zero_leaves_a_measure_out() -> None:
    off = RepetitionThresholds(0, 0, 0, 0, {}, {})
    config = SelfRepetitionConfig(words=off, characters=off, max_continuous=1.0)
    assert run(config, "same line\n" * 50, lang="en")[0] is None


def test_the_step_is_pickled() -> None:
    step = pickle.loads(pickle.dumps(SelfRepetition(SelfRepetitionConfig(listed_sites=["example.org"]))))
    assert step.apply(Document(EN, "web/0:1", metadata={"lang": "en"})) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": RepetitionThresholds(duplicate_lines=1.5)}, "words.duplicate_lines"),
        ({"characters": RepetitionThresholds(top_n_grams={0: 0.5})}, "characters.top_n_grams"),
        ({"unlisted_factor": 0.0}, "unlisted_factor"),
        ({"min_copies": 2}, "min_copies"),
        ({"keep_copies": 4}, "keep_copies"),
        ({"max_continuous": -0.1}, "max_continuous"),
        ({"listed_sites": ["/no/such/file"]}, "/no/such/file"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelfRepetition(SelfRepetitionConfig(**values))


def test_under_one_in_a_hundred_real_documents_is_lost(real_text: Path) -> None:
    """Of those that are long enough to come as far as this step."""
    losses = {}
    for path in sorted(real_text.glob("*.jsonl.gz")):
        step = SelfRepetition(SelfRepetitionConfig())
        with gzip.open(path) as lines:
            records = [orjson.loads(line) for line in lines]
        reasons: Counter[str] = Counter()
        documents = 0
        for record in records:
            text, lang = record["text"], record["lang"]
            if sum("一" <= c <= "鿿" for c in text) < 100 if lang == "zh" else len(text.split()) < 50:
                continue
            documents += 1
            drop = step.apply(Document(text, record["id"], metadata={"lang": lang, "category": record["category"]}))
            reasons[drop.reason if drop else "kept"] += 1
        losses[path.name.split(".")[0]] = 1 - reasons["kept"] / documents
    print({name: f"{loss:.2%}" for name, loss in losses.items()})
    assert len(losses) > 5
    assert max(losses.values()) < 0.01
