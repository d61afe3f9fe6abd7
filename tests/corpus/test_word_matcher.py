"""Counting words in texts: against a search by str methods, pyahocorasick, and the words of real text."""

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindllm_engine import _native
from mindllm_engine.corpus.readers import read_texts

# Letters and digits of the scripts that these tests use: what the matcher takes for part of a spaced word.
SPACED = re.compile(r"[0-9A-Za-zÀ-ÖØ-öø-ʯͰ-֏]")


def fold(text: str) -> str:
    return re.sub("[A-Z]", lambda letter: letter[0].lower(), text)


def search(words: list[str], text: str) -> tuple[dict[int, int], int]:
    """The definition, word for word: the longest that begins at a place, then on behind it."""
    numbers: dict[str, int] = {}
    for number, word in enumerate(words):
        numbers.setdefault(fold(word), number)
    longest_first = sorted(numbers, key=len, reverse=True)
    found: Counter[int] = Counter()
    folded, at, first = fold(text), 0, 0
    while at < len(text):
        for word in longest_first:
            end = at + len(word)
            if (
                folded.startswith(word, at)
                and not (SPACED.match(word[0]) and at > 0 and SPACED.match(text[at - 1]))
                and not (SPACED.match(word[-1]) and end < len(text) and SPACED.match(text[end]))
            ):
                first = first if found else at
                found[numbers[word]] += 1
                at = end
                break
        else:
            at += 1
    return dict(found), first


short = st.text("aAbé0-博彩票😀 ", min_size=1, max_size=5)


@settings(max_examples=600)
@given(st.lists(short, min_size=1, max_size=12), st.lists(short, max_size=30).map("".join))
@example(["abc", "de", "abcdex"], "abcdey-abc")
@example(["彩", "博彩", "彩票中心", "票"], "博彩票中心博彩票")
@example(["aa", "a"], "aaa aa a-a")
@example(["0", "-00"], "-0")
@example(["a b", "b", "b a"], "a b a b a")
def test_counts_are_those_of_a_plain_search(words: list[str], text: str) -> None:
    assert _native.WordMatcher(words).count(text) == search(words, text)


@settings(max_examples=200)
@given(
    st.lists(st.text("博彩票开", min_size=1, max_size=9), min_size=1, max_size=40), st.text("博彩票开心", max_size=300)
)
def test_overlapping_words_are_those_of_a_regular_expression(words: list[str], text: str) -> None:
    pattern = re.compile("|".join(sorted(set(words), key=len, reverse=True)))
    occurrences, _ = _native.WordMatcher(words).count(text)
    assert {words[i]: number for i, number in occurrences.items()} == Counter(pattern.findall(text))


@pytest.mark.parametrize(
    ("word", "text", "times"),
    [
        ("casino", "Casino CASINO casinos mycasino casino2 (casino) 去casino玩 _casino_", 5),
        ("Ärger", "Ärger ärger Ärgernis", 1),
        ("QQ群", "加QQ群 加qq群吧 3QQ群 xQQ群", 2),
        ("加QQ", "快加QQ了 加QQ3 加qq。", 2),
        ("a+", "a+ a+b ba+", 2),
        ("ставка", "ставка ставкам", 1),
        ("\U00020bb7野", "在\U00020bb7野\U00020bb7野", 2),
        ("free money", "free money, FREE MONEY, free  money, free moneys", 2),
    ],
)
def test_latin_words_are_whole_and_chinese_is_anywhere(word: str, text: str, times: int) -> None:
    assert sum(_native.WordMatcher([word]).count(text)[0].values()) == times


def random_words(count: int, seed: int) -> list[str]:
    """Chinese of two to six characters out of few, so that beginnings and ends are shared, and English."""
    chooser = random.Random(seed)
    characters = [chr(0x4E00 + i) for i in range(300)]
    words: set[str] = set()
    while len(words) < count:
        if chooser.random() < 0.8:
            words.add("".join(chooser.choices(characters, k=chooser.randint(2, 6))))
        else:
            words.add("".join(chooser.choices("abcdefghij", k=chooser.randint(2, 12))))
    return sorted(words)


def test_65_thousand_words_are_those_of_pyahocorasick() -> None:
    ahocorasick = pytest.importorskip("ahocorasick")
    words = random_words(65_000, 1)
    matcher = _native.WordMatcher(words)
    peer = ahocorasick.Automaton()
    for number, word in enumerate(words):
        peer.add_word(word, (number, len(word)))
    peer.make_automaton()
    chooser = random.Random(2)
    pieces = chooser.choices(words, k=20_000) + [chr(0x4E00 + chooser.randrange(300)) for _ in range(60_000)]
    chooser.shuffle(pieces)
    text = " ".join("".join(pieces[i : i + 3]) for i in range(0, len(pieces), 3))

    # pyahocorasick gives all occurrences; the leftmost and longest that do not overlap are chosen from them here.
    found = sorted((end - length + 1, -length, number) for end, (number, length) in peer.iter(text))
    expected: Counter[int] = Counter()
    free_from, first = 0, None
    for begin, negative_length, number in found:
        end, ascii_word = begin - negative_length, words[number].isascii()
        alone = not (ascii_word and ((text[:begin][-1:] or " ").isascii() and text[begin - 1 : begin].isalnum()))
        alone = alone and not (ascii_word and text[end : end + 1].isascii() and text[end : end + 1].isalnum())
        if begin >= free_from and alone:
            first = begin if first is None else first
            expected[number] += 1
            free_from = end
    assert matcher.count(text) == (dict(expected), first)
    assert len(expected) > 5_000
    assert matcher.bytes < 16 << 20


def test_every_word_of_a_large_vocabulary_is_found() -> None:
    words = random_words(65_000, 3)
    occurrences, first = _native.WordMatcher(words).count("|".join(words))
    assert (occurrences, first) == (dict.fromkeys(range(len(words)), 1), 0)


def test_real_text_is_searched_as_by_a_regular_expression(real_text: Path) -> None:
    words = ["时间", "问题", "我们的", "我们", "the", "of", "and", "人", "model", "The model"]
    chinese = "|".join(sorted((word for word in words if not word.isascii()), key=len, reverse=True))
    english = r"(?<![0-9A-Za-zÀ-ÖØ-öø-ʯͰ-֏Ḁ-῿])(?:the model|model|the|of|and)(?![0-9A-Za-zÀ-ÖØ-öø-ʯͰ-֏Ḁ-῿])"
    pattern = re.compile(f"{chinese}|{english}", re.IGNORECASE | re.ASCII)
    numbers = {fold(word): number for number, word in enumerate(words)}
    matcher = _native.WordMatcher(words)
    for path in sorted(real_text.glob("*.jsonl.gz")):
        for text in itertools.islice(read_texts([str(path)]), 100):
            expected = Counter(numbers[fold(match[0])] for match in pattern.finditer(text))
            assert matcher.count(text)[0] == expected


def test_hostile_text_takes_linear_time_and_no_memory() -> None:
    words = ["a" * length for length in range(1, 60)] + ["ab" * 300, "博" * 340, "博彩"]
    matcher = _native.WordMatcher(words)
    for text in ("ab" * 2_000_000, "博" * 1_000_000, "a " * 2_000_000, "\0" * 4_000_000):
        occurrences, _ = matcher.count(text)
        lengths = {number: len(words[number]) for number in occurrences}
        assert sum(lengths[number] * times for number, times in occurrences.items()) <= len(text)
    assert matcher.count("博" * 1000)[0] == {60: 2}
    assert matcher.count("ab" * 1000)[0] == {}  # "ababab..." is one word to whoever reads it, and not the 300-fold one


def test_bad_input_is_refused() -> None:
    for words, message in (([], "no word"), (["a", ""], "empty"), (["a" * 1024], "longer than 1023 bytes")):
        with pytest.raises(ValueError, match=message):
            _native.WordMatcher(words)
    matcher = _native.WordMatcher(["a" * 1023, "b"])
    assert matcher.count("a" * 1023 + " b") == ({0: 1, 1: 1}, 0)
    with pytest.raises(UnicodeEncodeError):
        matcher.count("\ud800")
    for what in (b"b", None, 7):
        with pytest.raises(TypeError):
            matcher.count(what)
    assert matcher.count("") == ({}, 0)
    assert matcher.count("\0b\0") == ({1: 1}, 1)


def test_equal_words_are_counted_as_the_first() -> None:
    assert _native.WordMatcher(["x", "AB", "ab", "Ab"]).count("aB AB x")[0] == {1: 2, 0: 1}
