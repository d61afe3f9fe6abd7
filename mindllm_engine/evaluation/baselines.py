"""What a network has to beat: n-gram models of the same tokens, and a general compressor on the same text.

All are given in bits per byte of UTF-8, over the same held-out tokens that the network is scored on: every token but
the first of each document.
"""

import lzma
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.data.token_files import TokenFile


class UnigramModel:
    """Add-one smoothed token frequencies.

    Args:
        files: the training tokens.
        vocab_size: V; each id gets one count more than it has.
    """

    def __init__(self, files: Iterable[TokenFile], vocab_size: int) -> None:
        counts = np.ones(vocab_size, np.float64)
        for file in files:
            _, words = histories_and_words(file)
            counts += np.bincount(words, minlength=vocab_size)
        self.log_probabilities = np.log(counts / counts.sum())

    def nats(self, file: TokenFile) -> float:
        """Sum of -ln P(word) over the words of a file."""
        _, words = histories_and_words(file)
        return -float(self.log_probabilities[words].sum())


class BigramModel:
    """Interpolated Kneser-Ney bigrams (Chen and Goodman 1999, section 2.7), discounts from the counts of counts.

    P(w | h) = max(c(h, w) - D, 0) / c(h) + D types(h) / c(h) P1(w), where P1 is made the same way from the number of
    distinct histories of w, over the uniform distribution.
    """

    def __init__(self, files: Iterable[TokenFile], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        codes = [self._codes(*histories_and_words(file)) for file in files]
        self.pairs, counts = np.unique(np.concatenate(codes), return_counts=True)
        histories, words = self.pairs // vocab_size, self.pairs % vocab_size
        discount = kneser_ney_discount(counts)
        history_counts = np.bincount(histories, counts, minlength=vocab_size)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.backoff = np.where(
                history_counts > 0, discount * np.bincount(histories, minlength=vocab_size) / history_counts, 1.0
            )
            self.pair_probabilities = (counts - discount) / history_counts[histories]
        distinct = np.bincount(words, minlength=vocab_size).astype(np.float64)
        lower_discount = kneser_ney_discount(distinct[distinct > 0])
        uniform_mass = lower_discount * np.count_nonzero(distinct) / vocab_size
        self.word_probabilities = (np.maximum(distinct - lower_discount, 0) + uniform_mass) / distinct.sum()

    def probabilities(self, histories: NDArray[np.int64], words: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(word | history) of each pair; arrays of one shape (n,)."""
        codes = self._codes(histories, words)
        places = np.searchsorted(self.pairs, codes).clip(max=len(self.pairs) - 1)
        seen = self.pairs[places] == codes
        return (
            np.where(seen, self.pair_probabilities[places], 0.0)
            + self.backoff[histories] * self.word_probabilities[words]
        )

    def nats(self, file: TokenFile) -> float:
        """Sum of -ln P(word | the word before it) over the words of a file."""
        return -float(np.log(self.probabilities(*histories_and_words(file))).sum())

    def _codes(self, histories: NDArray[np.int64], words: NDArray[np.int64]) -> NDArray[np.int64]:
        return histories * self.vocab_size + words


def kneser_ney_discount(counts: NDArray[np.float64] | NDArray[np.int64]) -> float:
    """D = n1 / (n1 + 2 n2), n1 and n2 the numbers of things counted once and twice; 0.5 where there are none."""
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return once / (once + 2 * twice) if once and twice else 0.5


def histories_and_words(file: TokenFile) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each token but the first of its document, and the token before it; both (n,) int64."""
    tokens = file.read(0, file.tokens).astype(np.int64)
    is_word = np.ones(len(tokens), bool)
    lengths = file.lengths
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    is_word[starts] = False
    words = np.flatnonzero(is_word)
    return tokens[words - 1], tokens[words]


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Nats over a text as bits for each of its bytes."""
    return nats / math.log(2) / text_bytes


def xz_bits_per_byte(text: bytes) -> float:
    """What `xz -9` makes of a text, in bits per byte."""
    return 8 * len(lzma.compress(text, preset=9)) / len(text)
