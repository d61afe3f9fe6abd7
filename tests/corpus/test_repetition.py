"""Self-repetition in C++ against datatrove's own counting, brute force, and hostile texts."""

import gzip
import re
import sys
import time
import unicodedata
from pathlib import Path

import orjson
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates, get_n_grams
from hypothesis import given, settings
from hypothesis import strategies as st
from mindllm_engine._native import measure_repetition, shorten_repetition, split_words

from benchmarks.corpus_repetition import OurWords
from mindllm_engine.corpus.steps.self_repetition import RepetitionThresholds, find_repetition
from tests.corpus import words_oracle

TOP, DUPLICATE = [2, 3, 4], [5, 6, 7, 8, 9, 10]
# Of few words, so that much is repeated.
repetitive = st.lists(
    st.sampled_from(["a", "b", "ab", "c.", "--", " ", " ", "\n", "\n\n", "的", "是", "\t", "你好", "\u3000", "é"]),
    max_size=200,
).map("".join)
DATATROVE_REASONS = {
    "duplicate paragraphs": "dup_para_frac",
    "duplicate paragraph characters": "dup_para_char_frac",
    "duplicate lines": "dup_line_frac",
    "duplicate line characters": "dup_line_char_frac",
    **{f"top {n}-gram": f"top_{n}_gram" for n in TOP},
    **{f"duplicate {n}-grams": f"duplicated_{n}_n_grams" for n in DUPLICATE},
}


@given(st.text(words_oracle.ALPHABET, max_size=60))
def test_words_are_those_of_the_rule(text: str) -> None:
    assert split_words(text) == words_oracle.split_words(text)


def test_nearly_all_of_unicode_falls_into_the_kinds_that_python_knows() -> None:
    characters = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    wrong = [c for c in characters if split_words(f"x{c}x") != words_oracle.split_words(f"x{c}x")]
    assert not [c for c in wrong if c.isspace()]
    assert len(wrong) < 0.01 * len(characters)  # rare signs among letters


@settings(max_examples=300)
@given(repetitive)
def test_counts_equal_datatroves(text: str) -> None:
    found = measure_repetition(text, TOP, DUPLICATE)
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split("\n+", text)
    words = words_oracle.split_words(text)
    assert (found.chars, found.paragraphs, found.lines, found.words) == (
        len(text),
        len(paragraphs),
        len(lines),
        len(words),
    )
    assert (found.duplicate_paragraphs.count, found.duplicate_paragraphs.chars) == find_duplicates(paragraphs)
    assert (found.duplicate_lines.count, found.duplicate_lines.chars) == find_duplicates(lines)
    for n, top in zip(TOP, found.top_n_grams, strict=True):
        n_grams = get_n_grams(words, n)
        counts = {n_gram: n_grams.count(n_gram) for n_gram in n_grams}
        expected = max(counts, key=counts.__getitem__, default="")
        assert (top.count, top.chars) == (counts.get(expected, 0), len(expected) * counts.get(expected, 0))
    assert [found.chars for found in found.duplicate_n_grams] == [find_all_duplicate(words, n) for n in DUPLICATE]


@settings(max_examples=300)
@given(repetitive)
def test_places_are_those_of_what_is_repeated(text: str) -> None:
    found = measure_repetition(text, [2], [5])
    lines = [(match.start(), match[0]) for match in re.finditer(r"[^\n]+", text)]
    again = [place for i, (place, line) in enumerate(lines) if line in [other for _, other in lines[:i]]]
    if again:
        assert found.duplicate_lines.at == again[0]
    if found.top_n_grams[0].count:
        first = get_n_grams(words_oracle.split_words(text[found.top_n_grams[0].at :]), 2)[0]
        assert len(first) * found.top_n_grams[0].count == found.top_n_grams[0].chars


def datatrove_verdict(gopher: GopherRepetitionFilter, text: str) -> str | None:
    verdict = gopher.filter(Document(text, "document"))
    return None if verdict is True else verdict[1]


def our_verdict(text: str) -> str | None:
    drop = find_repetition(text, RepetitionThresholds())
    return drop and DATATROVE_REASONS[drop.reason]


@settings(max_examples=300)
@given(repetitive.filter(bool))
def test_verdicts_equal_datatroves(text: str) -> None:
    assert our_verdict(text) == datatrove_verdict(GopherRepetitionFilter(language=OurWords()), text)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", ["academic", "book", "code", "encyclopedia", "math", "technology"])
def test_verdicts_equal_datatroves_on_real_english(real_text: Path, source: str) -> None:
    gopher = GopherRepetitionFilter(language=OurWords())
    with gzip.open(real_text / f"en_{source}.jsonl.gz") as lines:
        texts = [orjson.loads(line)["text"] for line in lines]
    assert [our_verdict(text) for text in texts] == [datatrove_verdict(gopher, text) for text in texts]
    assert any(our_verdict(text) for text in texts)


def is_phrase(phrase: str) -> bool:
    kinds = {character: words_oracle.kind(character) for character in phrase}
    signs = {character for character in phrase if kinds[character] == "other"}
    if set(phrase) & set("0123456789_") or signs - set("!',-.:;?~·—‘’“”…、。！，：；？～"):
        return False
    return "ideograph" in kinds.values() or {"letter", "space"} <= set(kinds.values())


def shortened_by_brute_force(text: str, copies: int, keep: int) -> str:
    data = text.encode()
    for period in range(2, 193):
        kept, at, end_of_last, copied = b"", period, 0, 0
        while at < len(data):
            if data[at] != data[at - period]:
                at += 1
                continue
            begin = max(at - period, end_of_last)
            while at < len(data) and data[at] == data[at - period]:
                at += 1
            end = at
            while begin < end and data[begin] & 0xC0 == 0x80:
                begin += 1
            while begin < end < len(data) and data[end] & 0xC0 == 0x80:
                end -= 1
            found = (end - begin) // period
            if found >= copies and is_phrase(data[begin : begin + period].decode()):
                kept += data[copied : begin + keep * period]
                copied, end_of_last = begin + found * period, end
        data = kept + data[copied:]
    return data.decode()


@settings(max_examples=500)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["哈", "买", "ha ", "ab", "é ", "买它，", "0 ", "-", "哉", "x\n", "a b c "]),
            st.integers(1, 9),
        ),
        max_size=12,
    ),
    st.integers(3, 5),
    st.integers(1, 2),
)
def test_shortening_equals_brute_force(parts: list[tuple[str, int]], copies: int, keep: int) -> None:
    text = "".join(phrase * times for phrase, times in parts)
    expected = shortened_by_brute_force(text, copies, keep)
    shortened, removed, example = shorten_repetition(text, copies, keep)
    assert (shortened, removed) == (expected, len(text) - len(expected))
    assert bool(example) == bool(removed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他笑了：哈哈哈哈哈哈哈！", "他笑了：哈哈！"),
        ("买它！买它！买它！买它！买它！真的好。", "买它！买它！真的好。"),
        ("谢谢谢，好好好", None),  # three of them are language
        ("Buy now! Buy now! Buy now! Buy now! Buy now! Today only.", "Buy now! Buy now! Today only."),
        ("sooooooo good, 0xffffffff, AAAAAAAA==", None),
        ("| --- | --- | --- | --- | --- |\n0 0 0 0 0 0 0 0\n==========", None),
        ("1, 1, 1, 1, 1, 1, x_1 x_1 x_1 x_1 x_1", None),
        ("今天天气真好，我们去公园玩吧。" * 30, "今天天气真好，我们去公园玩吧。" * 2),
        ("", None),
    ],
)
def test_what_is_shortened(text: str, expected: str | None) -> None:
    assert shorten_repetition(text, 4, 2)[0] == (text if expected is None else expected)


HOSTILE = {
    "one letter": "a",
    "one ideograph": "哈",
    "one digit": "0",
    "equal lines": "buy it now\n",
    "lines of one letter": "a\n",
    "newlines": "\n",
    "spaces": " ",
    "signs": ".-",
    "a long period": "x" * 150 + " y",
    "nearly one letter": "ab" * 40 + "c ",
}


@pytest.mark.parametrize("pattern", HOSTILE)
def test_hostile_texts_take_linear_time(pattern: str) -> None:
    unit = HOSTILE[pattern]
    seconds = []
    for size in (3_000_000, 24_000_000):
        text = unit * (size // len(unit.encode()))
        begin = time.process_time()
        measure_repetition(text, TOP, DUPLICATE)
        shorten_repetition(text, 4, 2)
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 20 * seconds[0] + 1


@pytest.mark.parametrize("unit", ["a", "哈", "buy it now\n"])
def test_a_hundred_megabytes_are_measured_in_bounded_time(unit: str) -> None:
    text = unit * (100_000_000 // len(unit.encode()))
    begin = time.process_time()
    found = measure_repetition(text, TOP, DUPLICATE)
    shortened, removed, _ = shorten_repetition(text, 4, 2)
    assert time.process_time() - begin < 30
    assert found.words
    assert removed + len(shortened) == len(text)
    assert shortened == (text if unit == "a" else 2 * unit)


def test_of_a_very_long_text_the_beginning_is_measured() -> None:
    text = "".join(f"{number} " for number in range(2_000_000)) + "the same again " * 100_000
    found = measure_repetition(text, TOP, DUPLICATE)
    assert found.chars == 1 << 23
    assert found.duplicate_n_grams[0].count == 0


def test_lone_surrogates_and_impossible_numbers_are_refused() -> None:
    for call in (lambda: measure_repetition("a\ud800", TOP, DUPLICATE), lambda: shorten_repetition("a\ud800", 4, 2)):
        with pytest.raises(UnicodeEncodeError):
            call()
    for copies, keep in ((2, 1), (4, 4), (4, 0)):
        with pytest.raises(ValueError, match="copies"):
            shorten_repetition("text", copies, keep)
