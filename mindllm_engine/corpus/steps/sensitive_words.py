"""Sensitive content: documents with too many words of a vocabulary are dropped.

Section 2 of the MindLLM paper removes toxic and sensitive pages by a vocabulary; it gives no figures, so the thresholds
are ours. What counts as an occurrence is in csrc/word_matcher.hpp.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.data import Document

from mindllm_engine import _native
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.corpus.steps.step import CorpusStep
from mindllm_engine.errors import ConfigError, DataError

UNNAMED = "unnamed"
# Of a dropped text, around the first word found.
EXCERPT_BEFORE, EXCERPT_AFTER = 100, 400
# Of the words found, how many the reason names.
NAMED_WORDS = 8


DEFAULT_VOCABULARY = Path(__file__).with_name("sensitive_words.tsv")


@dataclass
class SensitiveWordsConfig:
    """The vocabulary, and how much of it a document may hold. It is dropped when all three thresholds are reached,
    since each alone is wrong about honest text."""

    vocabulary: list[str] = field(default_factory=list)
    """Files in UTF-8 with a word a line; optionally a weight (1 by default) and a category, set off by tabs. Lines that
    begin with "# " are comments. `~` and environment variables are expanded. Empty: the small list that ships with the
    engine, of advertisements for gambling, pornography and fraud in Chinese and English."""
    occurrences: float = 5
    """Sum of the weights of all occurrences. A word or two in passing is no advertisement."""
    distinct: int = 3
    """Different words. An article about one thing names it over and over; an advertisement goes through the list."""
    share: float = 0.01
    """Of the characters, how many belong to occurrences. A novel has a few of all words among a million others."""

    def validate(self) -> None:
        """Raises ConfigError for an impossible threshold."""
        if not 0 <= self.share <= 1:
            raise ConfigError(f"sensitive_words.share is {self.share}; it is a share of the characters, from 0 to 1")
        if self.distinct < 1:
            raise ConfigError(f"sensitive_words.distinct is {self.distinct}; it must be 1 at least")


@dataclass(frozen=True)
class SensitiveWord:
    """One line of a vocabulary."""

    word: str
    weight: float
    category: str


def read_vocabulary(paths: list[str]) -> list[SensitiveWord]:
    """All words of all files; of words that are the same but for the case of A-Z, the first.

    Raises DataError for a file that is missing or no UTF-8, a line that cannot be read, or no word at all.
    """
    words: dict[str, SensitiveWord] = {}
    for path in [Path(expand_path(path)) for path in paths] or [DEFAULT_VOCABULARY]:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); see sensitive_words.vocabulary") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is no UTF-8 at byte {error.start}; convert it") from error
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("# "):
                word = parse_line(line, f"{path}:{number}")
                words.setdefault(word.word.lower(), word)
    if not words:
        raise DataError(f"{', '.join(paths)}: holds no word; name a vocabulary with one word a line")
    return list(words.values())


def parse_line(line: str, where: str) -> SensitiveWord:
    """A line that is not empty. Raises DataError."""
    word, weight, category, *rest = [*(part.strip() for part in line.split("\t")), "", ""]
    if not word or len([part for part in rest if part]) > 0:
        raise DataError(f"{where}: a line is a word, and optionally a weight and a category, set off by tabs")
    if len(word.encode()) > 1023:
        raise DataError(f"{where}: the word is longer than 1,023 bytes; shorten it")
    try:
        value = float(weight or 1)
    except ValueError:
        raise DataError(f"{where}: the weight {weight!r} is no number") from None
    if not 0 < value < float("inf"):
        raise DataError(f"{where}: the weight {weight} is not above 0")
    return SensitiveWord(word, value, category or UNNAMED)


class SensitiveWords(CorpusStep):
    """Drops by the category that weighs most; counts occurrences by category, in dropped documents and in others.

    Raises ConfigError for an impossible threshold, DataError for a vocabulary that cannot be read.
    """

    name = "sensitive words"

    def __init__(self, config: SensitiveWordsConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.vocabulary = read_vocabulary(config.vocabulary)
        self.matcher: Any = None  # made when first used: it cannot be pickled

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "matcher": None}

    def apply(self, document: Document) -> Drop | None:
        """See CorpusStep."""
        if self.matcher is None:
            self.matcher = _native.WordMatcher([word.word for word in self.vocabulary])
        found, first = self.matcher.count(document.text)
        if not found:
            return None
        weights: dict[str, float] = {}
        chars = 0
        for number, times in found.items():
            word = self.vocabulary[number]
            weights[word.category] = weights.get(word.category, 0) + times * word.weight
            chars += times * len(word.word)
            self.count(f"words: {word.category}", times)
        self.count("documents with words")
        share = chars / len(document.text)
        config = self.config
        if len(found) < config.distinct or sum(weights.values()) < config.occurrences or share < config.share:
            return None
        category = max(sorted(weights), key=weights.__getitem__)
        excerpt = document.text[max(0, first - EXCERPT_BEFORE) : first + EXCERPT_AFTER]
        return Drop(f"sensitive words: {category}", self.detail(found, share), excerpt)

    def detail(self, found: dict[int, int], share: float) -> str:
        """What was found: the most frequent words first."""
        order = sorted(found, key=lambda number: (-found[number], number))
        named = ", ".join(f"{self.vocabulary[number].word} {found[number]}" for number in order[:NAMED_WORDS])
        more = ", ..." if len(order) > NAMED_WORDS else ""
        return f"{sum(found.values())} of {len(found)} words, {share:.1%} of the characters: {named}{more}"
