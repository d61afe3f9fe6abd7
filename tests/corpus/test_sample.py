"""The sample corpus: its sizes, that it is the same everywhere, and that what it says is right.

Sums are recomputed by a parser of number words that shares nothing with the generator; code is compiled and its
examples run.
"""

import doctest
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindllm_engine.corpus.sample import SOURCES, SampleSource, tables_story_en, technology, write_sample_corpus
from mindllm_engine.corpus.sample.phrases import number_en, number_zh
from mindllm_engine.errors import DataError

NAMES = [spec.name for spec in SOURCES]
Corpus = dict[str, SampleSource]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_sample_corpus(tmp_path_factory.mktemp("sample"), seed=1)


def _texts(source: SampleSource) -> list[str]:
    return [json.loads(line)["text"] for line in source.path.read_text(encoding="utf-8").splitlines()]


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_sources_and_sizes(corpus: Corpus) -> None:
    assert list(corpus) == NAMES
    assert 10 <= len(corpus) <= 12
    assert {source.lang for source in corpus.values()} == {"en", "zh"}
    assert all(source.bytes >= 120_000 for source in corpus.values())
    assert 2_500_000 <= sum(source.bytes for source in corpus.values()) <= 5_000_000


@pytest.mark.parametrize("name", NAMES)
def test_records(corpus: Corpus, name: str) -> None:
    source = corpus[name]
    lines = source.path.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == source.documents
    assert sum(len(record["text"].encode()) for record in records) == source.bytes
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        assert list(record) == ["id", "text", "lang", "category", "source"]
        assert (record["lang"], record["category"], record["source"]) == (source.lang, source.category, name)
        assert record["text"] == record["text"].strip() != ""


@pytest.mark.parametrize("name", NAMES)
def test_documents_differ_and_have_a_sensible_length(corpus: Corpus, name: str) -> None:
    texts = _texts(corpus[name])
    assert len(set(texts)) > 0.99 * len(texts)
    lengths = [len(text) for text in texts]
    assert max(lengths) <= 1500
    assert sum(80 <= length <= 1000 for length in lengths) > 0.9 * len(lengths)


@pytest.mark.parametrize("name", NAMES)
def test_no_unfilled_slot_and_no_broken_sentence(corpus: Corpus, name: str) -> None:
    if name in ("en_code", "en_technology"):
        return
    broken = re.compile(r"[{}|]|\bNone\b|  | a [aeiou]| an [^aeiou\W]|。。|，。|\.\.|。[a-z]")
    for text in _texts(corpus[name]):
        assert not broken.search(text), text


def test_language(corpus: Corpus) -> None:
    for name, source in corpus.items():
        for text in _texts(source):
            letters = [character for character in text if character.isalpha()]
            share = sum("\u4e00" <= character <= "\u9fff" for character in letters) / max(1, len(letters))
            if name.startswith("en_"):
                assert share == 0, text
            elif name == "parallel_zh_en":
                assert 0.1 < share < 0.6, text
            elif name == "zh_arithmetic":
                assert share == 1, text
            else:
                assert share > 0.9, text
            if name.startswith("zh_"):
                assert not re.search(r"[,;:?!]", text), text


def test_the_same_seed_gives_the_same_bytes_in_every_process(corpus: Corpus, tmp_path: Path) -> None:
    command = "import sys; from mindllm_engine.corpus.sample import write_sample_corpus as w; w(sys.argv[1], 1)"
    for hash_seed in ("0", "12345"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        folder = tmp_path / hash_seed
        subprocess.run([sys.executable, "-c", command, str(folder)], env=environment, check=True, timeout=120)
        assert _digests(folder) == _digests(corpus["en_qa"].path.parent)


def test_another_seed_gives_other_documents(corpus: Corpus, tmp_path: Path) -> None:
    other = write_sample_corpus(tmp_path, seed=2)
    for name in NAMES:
        assert _texts(corpus[name])[:50] != _texts(other[name])[:50]


def test_an_unwritable_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the sample corpus"):
        write_sample_corpus(tmp_path / "file", seed=1)


def test_without_a_standard_library_the_technology_source_still_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(technology.sysconfig, "get_path", lambda _: str(tmp_path / "nothing"))
    source = write_sample_corpus(tmp_path, seed=1)["en_technology"]
    assert source.bytes >= 120_000
    assert len(set(_texts(source))) == source.documents


# Arithmetic


def _read_en(words: str) -> int:
    """The value of a number in English words, by adding and multiplying word by word."""
    names = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    small = {name: k for k, name in enumerate([*names.split(), "seventeen", "eighteen", "nineteen"])}
    tens = "twenty thirty forty fifty sixty seventy eighty ninety"
    small |= {name: 10 * k for k, name in enumerate(tens.split(), start=2)}
    total = current = 0
    for word in words.lower().replace("-", " ").split():
        if word == "hundred":
            current *= 100
        elif word == "thousand":
            total, current = total + 1000 * current, 0
        elif word != "and":
            current += small[word]
    return total + current


def _read_zh(words: str) -> int:
    """The value of a number in Chinese numerals: a digit waits for the unit that follows it."""
    units = {"十": 10, "百": 100, "千": 1000}
    total, digit = 0, None
    for character in words:
        if character in units:
            total, digit = total + (1 if digit is None else digit) * units[character], None
        elif character != "零":
            digit = "零一二三四五六七八九".index(character)
    return total + (digit or 0)


def _holds(a: int, operation: str, b: int, result: int) -> bool:
    """Whether a + b = result; a quotient must be exact."""
    if operation in ("÷", "divided by", "除以"):
        return a == b * result
    if operation in ("×", "times", "乘以"):
        return a * b == result
    return result == (a + b if operation in ("+", "plus", "加") else a - b)


def test_numbers_in_words_read_back() -> None:
    for value in range(10_000):
        assert _read_en(number_en(value)) == value
        assert _read_zh(number_zh(value)) == value
    assert number_en(1205) == "one thousand two hundred and five"
    assert [number_zh(value) for value in (10, 12, 105, 110, 1010, 2002)] == [
        "十",
        "十二",
        "一百零五",
        "一百一十",
        "一千零一十",
        "二千零二",
    ]


EQUATION = re.compile(r"(\d+) ([-+×÷]) (\d+) = (\d+)")
SENTENCE_EN = re.compile(r"(?:^|(?<=\. ))([A-Z][a-z -]*?) (plus|minus|times|divided by) ([a-z -]+) equals ([a-z -]+)\.")
SENTENCE_ZH = re.compile(
    r"([零一二三四五六七八九十百千]+)(加|减|乘以|除以)([零一二三四五六七八九十百千]+)等于([零一二三四五六七八九十百千]+)"
)


@pytest.mark.parametrize("name", ["en_arithmetic", "zh_arithmetic"])
def test_every_sum_is_right(corpus: Corpus, name: str) -> None:
    checked = 0
    for text in _texts(corpus[name]):
        for line in text.splitlines():
            equations = EQUATION.findall(line)
            sentences = (SENTENCE_EN if name == "en_arithmetic" else SENTENCE_ZH).findall(line)
            read = _read_en if name == "en_arithmetic" else _read_zh
            assert len(equations) == line.count("=")
            assert len(sentences) == line.count("equals") + line.count("等于")
            assert equations or sentences
            for a, operation, b, result in equations:
                assert _holds(int(a), operation, int(b), int(result)), line
            for a, operation, b, result in sentences:
                assert _holds(read(a), operation, read(b), read(result)), line
            checked += len(equations) + len(sentences)
    assert checked > 5000


@pytest.mark.parametrize("name", ["en_arithmetic", "zh_arithmetic"])
def test_a_problem_ends_with_the_result_of_its_equation(corpus: Corpus, name: str) -> None:
    problems = 0
    for text in _texts(corpus[name]):
        for line in text.splitlines():
            match = re.fullmatch(r".*[?？] ?\d+ . \d+ = (\d+)[.。](\D*)(\d+)(\D*)", line)
            if match:
                assert match[1] == match[3], line
                problems += 1
    assert problems > 400


def test_a_bill_adds_up(corpus: Corpus) -> None:
    numeral = "([零一二两三四五六七八九十百千]+)"
    bills = 0
    for text in _texts(corpus["zh_dialogue"]):
        if "服务员" in text:
            line = next(line for line in text.splitlines() if line.startswith("服务员") and "一共" in line)
            total = re.search(f"一共{numeral}块", line)
            parts = re.findall(f"{numeral}块", line.replace(total[0], "")) if total else []
            assert total
            assert len(parts) == 3
            assert sum(_read_zh(part) for part in parts) == _read_zh(total[1]), line
            bills += 1
    assert bills > 30


# Code


def test_code_compiles_and_its_examples_hold(corpus: Corpus) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    for k, text in enumerate(_texts(corpus["en_code"])):
        program = compile(text, f"sample-{k}", "exec")
        if k % 3 == 0:
            namespace: dict[str, object] = {"__name__": "sample"}
            exec(program, namespace)
            functions = [value for value in namespace.values() if getattr(value, "__module__", None) == "sample"]
            assert len(functions) == text.count("def ")
            for function in functions:
                for example in doctest.DocTestFinder().find(function, globs=namespace):
                    assert example.examples
                    runner.run(example)
    assert runner.failures == 0
    assert runner.tries > 300


# Translation and facts


def test_sentences_alternate_with_their_translation(corpus: Corpus) -> None:
    for text in _texts(corpus["parallel_zh_en"]):
        labels = [line[:3] for line in text.splitlines()]
        assert len(labels) % 2 == 0
        assert {frozenset(labels[k : k + 2]) for k in range(0, len(labels), 2)} == {frozenset(["英文：", "中文："])}


def test_a_story_keeps_its_people_and_their_pronouns(corpus: Corpus) -> None:
    boys, girls = set(tables_story_en.BOYS), set(tables_story_en.GIRLS)
    for text in _texts(corpus["en_story"]):
        words = re.findall(r"[A-Za-z]+", text)
        named = {word for word in words if word in boys | girls}
        assert len(named) <= 2, text
        if named and named <= girls:
            elders_he = {"grandfather", "father", "uncle"} & set(words)
            assert elders_he or not {"he", "him", "his", "He"} & set(words), text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("en_encyclopedia", "The capital of France is Paris."),
        ("en_qa", "The capital of France is Paris."),
        ("zh_encyclopedia", "法国的首都是巴黎。"),
        ("zh_qa", "法国的首都是巴黎。"),
    ],
)
def test_what_the_demo_asks_for_is_there_several_times(corpus: Corpus, name: str, sentence: str) -> None:
    assert sum(sentence in text for text in _texts(corpus[name])) >= 3
