"""The index of overlaps against brute force over lists of words."""

import itertools
import re
import time
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindllm_engine._native import OverlapIndex

RULES = {"words_n": 4, "chars_n": 5, "min_words": 2, "min_chars": 3, "max_items": 2}


def make_index(items: list[str], **rules: int) -> OverlapIndex:
    index = OverlapIndex(**(RULES | rules))
    for item in items:
        index.add(item)
    index.finish()
    return index


def normal_words(text: str) -> list[tuple[str, int, int]]:
    """Words of the texts below, with their places."""
    found = re.finditer(r"[一-鿿]|[A-Za-z0-9_é]+", text)
    return [(m[0].lower(), m.start(), m.end()) for m in found if not re.fullmatch("[A-Za-z]", m[0])]


def brute_force(items: list[str], document: str, share: float) -> list[tuple[int, int, int, int, int]]:
    n_grams: list[list[tuple[str, ...]]] = []
    having = defaultdict(set)
    for number, item in enumerate(items):
        words = [word for word, _, _ in normal_words(item)]
        chinese = 2 * sum("一" <= word <= "鿿" for word in words) > len(words)
        n = min(RULES["chars_n" if chinese else "words_n"], len(words))
        enough = n >= RULES["min_chars" if chinese else "min_words"]
        n_grams.append([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] if enough else [])
        for n_gram in n_grams[-1]:
            having[n_gram].add(number)
    words = normal_words(document)
    found = []
    for number, grams in enumerate(n_grams):
        findable, covered, begins, ends = set(), set(), [], []
        for at, gram in enumerate(grams):
            if len(having[gram]) > RULES["max_items"]:
                continue
            findable |= set(range(at, at + len(gram)))
            places = [i for i in range(len(words)) if tuple(word for word, _, _ in words[i : i + len(gram)]) == gram]
            if places:
                covered |= set(range(at, at + len(gram)))
                begins.append(words[places[0]][1])
                ends.append(words[places[0] + len(gram) - 1][2])
        if covered and len(covered) >= share * len(findable):
            found.append((number, len(findable), len(covered), min(begins), max(ends)))
    return found


texts = st.lists(
    st.sampled_from(["red", "RED", "blue", "a", "B", "42", "café", "的", "是", "花", "，", "_"]), max_size=14
).map(" ".join)


@settings(max_examples=500)
@given(st.lists(texts, max_size=8), texts, st.sampled_from([0.01, 0.5, 1.0]))
def test_overlaps_equal_brute_force(items: list[str], document: str, share: float) -> None:
    document = f"{document} — {' '.join(items[:2])} {document}"
    found = make_index(items).find(document, share)
    assert [(o.item, o.words, o.covered, o.begin, o.end) for o in found] == brute_force(items, document, share)


def test_words_are_compared_without_case_width_punctuation_and_option_letters() -> None:
    index = make_index(["What is the capital of France?\nParis\nLyon", "下列城市中，属于省会的是\n杭州\n宁波"])
    for document in (
        "Q: WHAT is the capital of “France”? (A) Paris (B) Lyon",
        "what is the ｃａｐｉｔａｌ of france paris lyon",
    ):
        assert [(o.item, o.covered) for o in index.find(document, 0.99)] == [(0, 8)]
    overlap = index.find("题目：下列城市中属于省会的是（　） A. 杭州 B. 宁波", 0.99)
    assert [(o.item, o.covered) for o in overlap] == [(1, 15)]
    assert index.find("What is the largest city of France? Lyon, Paris", 0.5) == []


def test_short_and_common_items_are_told() -> None:
    items = ["one", "which of these is true"] + [f"which of these is true number {i}" for i in range(9)]
    index = make_index(items, words_n=5, min_words=3)
    assert (index.items, index.short_items, index.common_items) == (11, 1, 1)
    assert index.find("one", 0.1) == []
    assert index.find("Say which of these is true.", 0.1) == []
    assert [o.item for o in index.find("which of these is true number 7", 0.5)] == [9]


def test_an_empty_index_finds_nothing() -> None:
    assert make_index([]).find("some text", 0.5) == []
    assert make_index(["", "。"]).find("", 0.5) == []


def test_misuse_is_refused() -> None:
    for rules in ({"min_words": 5}, {"min_chars": 0}, {"words_n": 257}, {"max_items": 0}):
        with pytest.raises(ValueError, match=r"overlap|item|n-gram"):
            make_index([], **rules)
    index = OverlapIndex(**RULES)
    with pytest.raises(ValueError, match="finished"):
        index.find("text", 0.5)
    index.finish()
    with pytest.raises(ValueError, match="finished"):
        index.add("text")
    with pytest.raises(UnicodeEncodeError):
        index.find("\ud800", 0.5)


@pytest.mark.parametrize("pattern", ["a", "哈", "red blue 42 ", "红花绿叶，", "\n", "word\n"])
def test_hostile_documents_take_linear_time(pattern: str) -> None:
    index = make_index(
        ["red blue 42 red blue", "红花绿叶红花绿叶", *map(" ".join, itertools.product(["red", "42"], repeat=5))]
    )
    seconds = []
    for size in (3_000_000, 24_000_000):
        text = pattern * (size // len(pattern.encode()))
        begin = time.process_time()
        found = index.find(text, 0.5)
        seconds.append(time.process_time() - begin)
        assert bool(found) == (pattern in ("red blue 42 ", "红花绿叶，"))
    assert seconds[1] < 20 * seconds[0] + 1
