"""The baselines against versions written out: sums that are 1, counting by dictionaries, and the xz program."""

import itertools
import math
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.evaluation.baselines import BigramModel, UnigramModel, bits_per_byte, xz_bits_per_byte
from tests.data.test_loader import random_lengths, write_source

VOCAB = 40


@pytest.fixture
def files(tmp_path: Path) -> list[TokenFile]:
    return [
        write_source(tmp_path, name, [0, 1, *random_lengths(60, seed)], seed, top=VOCAB)
        for seed, name in enumerate("abc")
    ]


def documents(file: TokenFile) -> list[list[int]]:
    return [file.document(number).tolist() for number in range(file.documents)]


def test_unigram_by_dictionary(files: list[TokenFile]) -> None:
    counts = Counter(token for file in files[:2] for document in documents(file) for token in document[1:])
    total = counts.total() + VOCAB
    expected = -sum(math.log((counts[token] + 1) / total) for document in documents(files[2]) for token in document[1:])
    assert UnigramModel(files[:2], VOCAB).nats(files[2]) == pytest.approx(expected)


def test_bigram_by_dictionary(files: list[TokenFile]) -> None:
    pairs = Counter(pair for file in files[:2] for document in documents(file) for pair in itertools.pairwise(document))
    once, twice = (sum(count == number for count in pairs.values()) for number in (1, 2))
    discount = once / (once + 2 * twice)
    after: dict[int, Counter[int]] = defaultdict(Counter)
    for (history, word), count in pairs.items():
        after[history][word] = count
    distinct = Counter(word for _, word in pairs)
    once, twice = (sum(count == number for count in distinct.values()) for number in (1, 2))
    lower = once / (once + 2 * twice) if once and twice else 0.5

    def word_probability(word: int) -> float:
        return (max(distinct[word] - lower, 0) + lower * len(distinct) / VOCAB) / distinct.total()

    def probability(history: int, word: int) -> float:
        seen = after[history]
        if not seen:
            return word_probability(word)
        return (max(seen[word] - discount, 0) + discount * len(seen) * word_probability(word)) / seen.total()

    expected = -sum(
        math.log(probability(*pair)) for document in documents(files[2]) for pair in itertools.pairwise(document)
    )
    assert BigramModel(files[:2], VOCAB).nats(files[2]) == pytest.approx(expected)


def test_bigram_probabilities_sum_to_one(files: list[TokenFile]) -> None:
    model = BigramModel(files, VOCAB)
    for history in range(VOCAB):
        assert model.probabilities(np.full(VOCAB, history), np.arange(VOCAB)).sum() == pytest.approx(1.0)


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(2) * 80, 40) == pytest.approx(2.0)


@pytest.mark.skipif(shutil.which("xz") is None, reason="the program xz is not installed")
def test_xz_is_the_programs() -> None:
    text = ("床前明月光，疑是地上霜。" * 50 + "the quick brown fox " * 50).encode()
    program = subprocess.run(["xz", "-9", "--stdout"], input=text, capture_output=True, check=True).stdout
    assert xz_bits_per_byte(text) == 8 * len(program) / len(text)
