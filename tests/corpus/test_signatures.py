"""Signatures of texts against what they estimate, computed in Python: angles and Jaccard similarities of shingles."""

import math
import random
import re
import string
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.corpus.near_duplicates import NearDuplicatesConfig, make_signer
from mindllm_engine.corpus.readers import read_texts

SIMHASH = make_signer(NearDuplicatesConfig())
MINHASH_CONFIG = NearDuplicatesConfig(method="minhash", hashes=2000, bands=10)
MINHASH = make_signer(MINHASH_CONFIG)
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 600)]
WORDS = ["".join(random.Random(n).choices(string.ascii_lowercase, k=6)) for n in range(600)]


def simhash(text: str, lang: str = "en") -> int:
    return int.from_bytes(SIMHASH.sign(text, lang)[:8], "little")


def bits_between(text: str, other: str, lang: str) -> int:
    return (simhash(text, lang) ^ simhash(other, lang)).bit_count()


def units(text: str) -> list[str]:
    """Words, or single Han characters: for texts of ASCII and Han alone."""
    return re.findall(r"[a-z0-9]+|[一-鿿]", text.lower())


def shingles(text: str, n: int) -> list[tuple[str, ...]]:
    found = units(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def random_text(chooser: random.Random, lang: str, length: int) -> str:
    if lang == "zh":
        return "".join(chooser.choices(HAN, k=length))
    return " ".join(chooser.choices(WORDS, k=length))


def edited(chooser: random.Random, text: str, lang: str, edits: int) -> str:
    parts = list(text) if lang == "zh" else text.split()
    for place in chooser.sample(range(len(parts)), edits):
        parts[place] = chooser.choice(HAN if lang == "zh" else WORDS)
    return ("" if lang == "zh" else " ").join(parts)


def angle(text: str, other: str, n: int) -> float:
    """Between the vectors of weights, 1 + floor(log2 k) for a shingle that occurs k times, as a share of pi."""
    weights = [{s: k.bit_length() for s, k in Counter(shingles(t, n)).items()} for t in (text, other)]
    product = sum(weight * weights[1].get(shingle, 0) for shingle, weight in weights[0].items())
    norms = [math.sqrt(sum(weight**2 for weight in w.values())) for w in weights]
    return math.acos(min(1.0, product / norms[0] / norms[1])) / math.pi


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("edits", [4, 20, 80, 400])
def test_simhash_distance_is_the_angle(lang: str, edits: int) -> None:
    chooser = random.Random(edits)
    expected, got = [], []
    for _ in range(60):
        text = random_text(chooser, lang, 400)
        other = edited(chooser, text, lang, edits)
        expected.append(64 * angle(text, other, 2))
        got.append(bits_between(text, other, lang))
    # The standard error of 60 means of 64 bits is below 0.6 bits.
    assert abs(np.mean(got) - np.mean(expected)) < 2.0


def test_a_shingle_repeated_on_every_page_does_not_decide() -> None:
    chooser = random.Random(3)
    pages = [
        " ".join(f"{random_text(chooser, 'en', 12)} see the issue tracker at example.org" for _ in range(60))
        for _ in range(20)
    ]
    distances = [bits_between(a, b, "en") for i, a in enumerate(pages) for b in pages[:i]]
    assert min(distances) > 3


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("edits", [0, 10, 60, 400])
def test_minhash_estimates_jaccard_similarity(lang: str, edits: int) -> None:
    chooser = random.Random(edits)
    errors = []
    for _ in range(10):
        text = random_text(chooser, lang, 400)
        other = edited(chooser, text, lang, edits)
        sets = [set(shingles(t, 3 if lang == "zh" else 5)) for t in (text, other)]
        expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        values = [np.frombuffer(MINHASH.sign(t, lang)[:8000], np.uint32) for t in (text, other)]
        errors.append(float(np.mean(values[0] == values[1])) - expected)
    assert abs(np.mean(errors)) < 0.012
    assert max(map(abs, errors)) < 0.06  # five standard errors of 2000 values


SAME = [
    ("Hello, World! It's 5 o'clock.", "hello world  it s 5 o clock", "en"),
    ("春眠不觉晓，处处闻啼鸟。", "春眠 不觉晓\n处处闻啼鸟", "zh"),
    ("ＡＢＣ１２３　全角", "abc123 全角", "zh"),
    ("Ärger im Ötztal, Привет ΑΒΓ", "ärger im ötztal привет αβγ", "de"),
    ("tabs\tand\u00a0spaces\u200b and\x00controls 😀", "tabs and spaces and controls", "en"),
    ("“quoted” – text…", '"quoted" - text...', "en"),
]
DIFFERENT = [
    ("not a word", "nota word", "en"),
    ("word order", "order word", "en"),
    ("版本一", "版本二", "zh"),
    ("a 1", "a 2", "en"),
    ("！", "？", "zh"),
    ("", " ", "en"),
    ("resume", "résumé", "en"),
]


@pytest.mark.parametrize(("text", "other", "lang"), SAME)
def test_case_spaces_and_punctuation_do_not_count(text: str, other: str, lang: str) -> None:
    assert simhash(text, lang) == simhash(other, lang)
    assert MINHASH.sign(text, lang)[:8000] == MINHASH.sign(other, lang)[:8000]
    assert SIMHASH.sign(text, lang) != SIMHASH.sign(other, lang)  # but they are no exact copies
    assert simhash((text + " ") * 40, lang) == simhash((other + " ") * 40, lang)


@pytest.mark.parametrize(("text", "other", "lang"), DIFFERENT)
def test_short_texts_are_told_apart_by_all_they_hold(text: str, other: str, lang: str) -> None:
    assert bits_between(text, other, lang) > 7
    assert MINHASH.sign(text, lang)[:8000] != MINHASH.sign(other, lang)[:8000]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_short_texts_that_share_most_are_not_near(lang: str) -> None:
    """Texts of 1 to 32 units, many of which share all but one."""
    chooser = random.Random(0)
    texts = set()
    for _ in range(600):
        text = random_text(chooser, lang, chooser.randint(1, 32))
        texts |= {text, edited(chooser, text, lang, 1), edited(chooser, text, lang, 1)}
    signatures = np.array([simhash(text, lang) for text in sorted(texts)], np.uint64)
    near = sum(int(np.sum(np.bitwise_count(signatures[i + 1 :] ^ signatures[i]) <= 3)) for i in range(len(signatures)))
    assert near == 0


def test_poems_are_told_apart(real_text: Path) -> None:
    """19,103 Chinese texts, half of them of under 83 characters: those that are near share most shingles."""
    poems = sorted(set(read_texts([str(real_text / "zh_book.jsonl.gz")])))
    signatures = np.array([simhash(poem, "zh") for poem in poems], np.uint64)
    wrong = 0
    for i in range(len(poems)):
        for j in np.flatnonzero(np.bitwise_count(signatures[i + 1 :] ^ signatures[i]) <= 3):
            sets = [set(shingles(poems[k], 2)) for k in (i, i + 1 + int(j))]
            wrong += len(sets[0] & sets[1]) < 0.7 * len(sets[0] | sets[1])
    assert wrong <= 2


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.sampled_from(["zh", "en", "th", ""]))
def test_any_text_has_a_record_of_the_same_length(text: str, lang: str) -> None:
    for signer in (SIMHASH, MINHASH):
        record = signer.sign(text, lang)
        assert len(record) == signer.record_bytes
        assert record == signer.sign(text, lang)


@pytest.mark.parametrize("signer", [SIMHASH, MINHASH])
def test_lone_surrogates_and_other_types_are_refused(signer: Any) -> None:
    with pytest.raises(UnicodeEncodeError):
        signer.sign("a\ud800", "en")
    with pytest.raises(TypeError):
        signer.sign(b"bytes", "en")


@pytest.mark.parametrize("text", ["a" * 10**7, "a " * (5 * 10**6), "字" * (3 * 10**6), "!" * 10**7, "\x00" * 10**7])
def test_hostile_texts_take_linear_time(text: str) -> None:
    started = time.process_time()
    SIMHASH.sign(text, "zh")
    make_signer(NearDuplicatesConfig(method="minhash")).sign(text, "en")
    assert time.process_time() - started < 5
