"""Documents are dropped for many different words of a vocabulary, and for nothing less."""

import pickle
from pathlib import Path

import dill
import pytest
from datatrove.data import Document

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.corpus.steps.sensitive_words import SensitiveWords, SensitiveWordsConfig, read_vocabulary
from mindllm_engine.errors import ConfigError, DataError

HONEST_ZH = "春天来了，图书馆前的花都开了，学生们坐在树下看书，老师给他们讲语言的历史。"
HONEST_EN = "The committee met in spring and read the reports of all members before it voted on the budget. "


def make_step(tmp_path: Path, words: str, **thresholds: float) -> SensitiveWords:
    path = tmp_path / "words.tsv"
    path.write_text(words, encoding="utf-8")
    return SensitiveWords(SensitiveWordsConfig(vocabulary=[str(path)], **thresholds))


def verdict(step: SensitiveWords, text: str) -> Drop | None:
    return step.apply(Document(text, "test/0:1"))


WORDS = "# a comment\n红\t2\tcolours\n绿\n蓝\t1.5\tcolours\nTeal\t1\tcolours\n#紫\n"


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("红绿蓝" + "。" * 50, False),  # 2 + 1 + 1.5 of 5
        ("红绿蓝 TEAL " + "。" * 50, True),
        ("红绿红绿红绿" + "。" * 50, False),  # two different words
        ("红绿蓝#紫" + "。" * 395, True),  # 5 of 400 characters
        ("红绿蓝#紫" + "。" * 600, False),  # under a hundredth
        ("红红蓝 teals" + "。" * 10, False),  # no whole word
        ("", False),
    ],
)
def test_all_three_thresholds_must_be_reached(tmp_path: Path, text: str, dropped: bool) -> None:
    drop = verdict(make_step(tmp_path, WORDS), text)
    assert (drop is not None) == dropped
    assert drop is None or drop.reason == "sensitive words: colours"


def test_thresholds_are_those_of_the_config(tmp_path: Path) -> None:
    text = "绿" + "。" * 99
    assert verdict(make_step(tmp_path, WORDS, occurrences=1, distinct=1, share=0.01), text) is not None
    for changed in ({"occurrences": 1.01}, {"distinct": 2}, {"share": 0.0101}):
        assert (
            verdict(make_step(tmp_path, WORDS, **{"occurrences": 1, "distinct": 1, "share": 0.01, **changed}), text)
            is None
        )


def test_the_ledger_says_what_was_found_and_where(tmp_path: Path) -> None:
    step = make_step(tmp_path, WORDS)
    documents = [Document(HONEST_ZH * 20 + "红绿蓝" * 40, "test/0:1"), Document("绿色" + HONEST_ZH, "test/0:2")]
    kept = list(step.run(iter(documents)))
    assert [document.id for document in kept] == ["test/0:2"]
    entry = step.ledger.steps["sensitive words"]
    assert entry.counts == {"words: colours": 80, "words: unnamed": 41, "documents with words": 2}
    ((reason, dropped),) = entry.dropped.items()
    assert (reason, dropped.documents) == ("sensitive words: colours", 1)
    _, document_id, detail, excerpt = dropped.examples[0]
    assert document_id == "test/0:1"
    assert detail.startswith("120 of 3 words, 14.")
    assert "红 40, 绿 40, 蓝 40" in detail
    assert "红绿蓝" in excerpt


def test_the_shipped_words_drop_advertisements_and_keep_articles() -> None:
    step = SensitiveWords(SensitiveWordsConfig())
    gambling = "澳门新葡京网上赌场，真人荷官在线发牌，注册送彩金，百家乐、老虎机、体育投注应有尽有！" * 3
    english = (
        "Best online casino with a no deposit bonus, free spins and a live dealer. Place your bets and bet now! " * 2
    )
    fraud = "代开发票，办证刻章，信用卡套现，刷单兼职日赚千元，加微信领取。" * 3
    adult = "同城约炮，激情裸聊，免费黄片，高清无码在线看片。" * 4
    for text, category in ((gambling, "gambling"), (english, "gambling"), (fraud, "fraud"), (adult, "pornography")):
        drop = verdict(step, text)
        assert drop is not None
        assert drop.reason == f"sensitive words: {category}"
    article = "公安机关提醒：赌博害人害己。" + HONEST_ZH * 10 + "警方打击赌博，查获老虎机三台。"
    for text in (article, HONEST_EN * 20 + "He lost it all on sports betting.", HONEST_ZH, HONEST_EN):
        assert verdict(step, text) is None


def test_under_one_in_a_thousand_of_real_documents_is_dropped(real_text: Path) -> None:
    step = SensitiveWords(SensitiveWordsConfig())
    documents = dropped = 0
    for path in sorted(real_text.glob("*.jsonl.gz")):
        for text in read_texts([str(path)]):
            documents += 1
            dropped += verdict(step, text) is not None
    assert documents > 1000
    assert dropped <= documents / 1000


def test_a_step_is_pickled_before_and_after_use() -> None:
    step = SensitiveWords(SensitiveWordsConfig())
    text = "在线赌博，注册送彩金，体育投注。"
    expected = verdict(SensitiveWords(SensitiveWordsConfig()), text)
    assert expected is not None
    for _ in range(2):
        for library in (pickle, dill):
            again = library.loads(library.dumps(step))
            assert verdict(again, text) == expected
        verdict(step, text)


def test_several_vocabularies_are_joined_and_the_first_of_equal_words_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfSpam\t2\tx\r\n\r\n  ham  \r\n")
    (tmp_path / "b").write_text("SPAM\t9\ty\neggs\t\tz\n")
    words = read_vocabulary([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [(word.word, word.weight, word.category) for word in words] == [
        ("Spam", 2.0, "x"),
        ("ham", 1.0, "unnamed"),
        ("eggs", 1.0, "z"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tmany", "words.tsv:1: the weight 'many' is no number"),
        (b"b\na\t-1", "words.tsv:2: the weight -1 is not above 0"),
        (b"a\tnan", "not above 0"),
        (b"a\t1\tx\ty", "words.tsv:1: a line is a word"),
        (b"\t3\n", "words.tsv:1: a line is a word"),
        (b"\xff\xfe", "is no UTF-8 at byte 0"),
        (b"# nothing\n\n", "holds no word"),
        (b"a" * 1024, "longer than 1,023 bytes"),
    ],
)
def test_a_bad_vocabulary_is_an_error_that_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "words.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        read_vocabulary([str(tmp_path / "words.tsv")])


def test_bad_settings_are_errors() -> None:
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        SensitiveWords(SensitiveWordsConfig(vocabulary=["nowhere"]))
    for change, message in (({"share": 1.5}, "share"), ({"distinct": 0}, "distinct")):
        with pytest.raises(ConfigError, match=message):
            SensitiveWords(SensitiveWordsConfig(**change))
