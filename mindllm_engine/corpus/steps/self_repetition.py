"""Texts that repeat themselves (section 2 of the MindLLM paper): phrases without a break, equal lines, equal words.

What is measured are the quantities of table A1 of Gopher (arXiv 2112.11446), counted in C++ (csrc/repetition.hpp) as
datatrove's GopherRepetitionFilter counts them; given the same words it comes to the same verdicts. (datatrove takes
spaCy's words for English, which are other ones: addresses, decimals and abbreviations stay whole, "don't" falls into
"do" and "n't", a row of "=" into single signs.) Chinese is measured by characters.

Gopher filtered web pages alone by these. What was chosen by hand is held to looser thresholds here, for code, formulas
and tables repeat themselves by nature, and pages of unknown sites are held to stricter ones.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from datatrove.data import Document

from mindllm_engine._native import Repeated, Repetition, measure_repetition, shorten_repetition
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.corpus.steps.step import CorpusStep
from mindllm_engine.errors import ConfigError

# Written without spaces between words: measured by characters.
CHARACTER_LANGUAGES = frozenset({"zh", "ja"})
# No threshold is above this, however loose: a text that is nearly all repetition is dropped from any source.
LOOSEST = 0.9
# Characters before and after the place that a dropped document's excerpt shows.
BEFORE, AFTER = 100, 400


@dataclass
class RepetitionThresholds:
    """Shares above which a text repeats itself too much. 0 leaves a measure out."""

    shortest: int = 0
    """Shorter texts, in characters, are not measured."""
    duplicate_paragraphs: float = 0.30
    """Of paragraphs that equal an earlier one (Gopher, table A1)."""
    duplicate_paragraph_chars: float = 0.20
    """Of characters in them (Gopher, table A1)."""
    duplicate_lines: float = 0.30
    """Of lines that equal an earlier one (Gopher, table A1)."""
    duplicate_line_chars: float = 0.20
    """Of characters in them (Gopher, table A1)."""
    top_n_grams: dict[int, float] = field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    """By n: of characters in the most frequent n-gram (Gopher, table A1)."""
    duplicate_n_grams: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """By n: of characters in n-grams that equal an earlier one (Gopher, table A1)."""


def character_thresholds() -> RepetitionThresholds:
    """Gopher's shares for n-grams of characters.

    Duplicate n-grams: in 73 chapters of a textbook in both languages, without their code, n-grams of 5, 6 and 7
    English words and of 9, 10 and 12 Chinese characters have the same share on average; the longer ones follow by 1.6
    characters a word. The most frequent n-gram is a name or a term as a rule, as long in characters as in words: of
    clean hotel reviews 0.6 % are lost by 2, 3 and 4 characters, 1.4 % by 3, 5 and 6. In texts of fewer characters than
    a Chinese page has at least, a name that stands twice is a large share: of hotel reviews that short half would go.
    """
    return RepetitionThresholds(
        shortest=100, duplicate_n_grams={9: 0.15, 10: 0.14, 12: 0.13, 13: 0.12, 15: 0.11, 16: 0.10}
    )


@dataclass
class SelfRepetitionConfig:
    """How much a text may repeat itself."""

    words: RepetitionThresholds = field(default_factory=RepetitionThresholds)
    """For languages that are measured by words."""
    characters: RepetitionThresholds = field(default_factory=character_thresholds)
    """For Chinese and Japanese, which are measured by characters."""
    listed_sites: list[str] = field(default_factory=list)
    """Domains of sites that are known to be good, and paths (with a slash) of files with one domain a line; a domain
    stands for those below it as well. If there are any, pages of other sites are held to stricter thresholds."""
    unlisted_factor: float = 0.75
    """What thresholds are multiplied with for sites that are not listed (the paper gives no number)."""
    curated_categories: list[str] = field(
        default_factory=lambda: ["book", "technology", "academic", "math", "code", "encyclopedia", "qa", "dialogue"]
    )
    """Categories that were not collected from the web at large."""
    curated_factor: float = 5.0
    """What thresholds are multiplied with for these, up to 0.9 (Gopher filtered web pages alone by its table A1)."""
    min_copies: int = 4
    """A phrase that stands so many times in a row is shortened; 3 at least."""
    keep_copies: int = 2
    """To so many copies."""
    max_continuous: float = 0.20
    """A text of which shortening would take a larger share of characters is dropped."""


class SelfRepetition(CorpusStep):
    """Shortens phrases that stand many times in a row, and drops texts that still repeat themselves too much.

    Raises ConfigError for an impossible value and for a list of sites that cannot be read.
    """

    name = "self-repetition"

    def __init__(self, config: SelfRepetitionConfig) -> None:
        super().__init__()
        check(config)
        self.config = config
        self.sites = frozenset(listed_domains(config.listed_sites))

    def apply(self, document: Document) -> Drop | None:
        """See CorpusStep."""
        config, text = self.config, document.text
        if not text:
            return Drop("empty")
        shortened, removed, example = shorten_repetition(text, config.min_copies, config.keep_copies)
        if removed > config.max_continuous * len(text):
            return Drop("continuous repetition", f"{removed} of {len(text)} characters", example)
        by_characters = document.metadata.get("lang") in CHARACTER_LANGUAGES
        thresholds = config.characters if by_characters else config.words
        drop = find_repetition(shortened, thresholds, self.factor(document))
        if drop is None and removed:
            document.text = shortened
            self.count("documents shortened")
            self.count("characters removed", removed)
        return drop

    def factor(self, document: Document) -> float:
        """What thresholds are multiplied with for a document."""
        if document.metadata.get("category") in self.config.curated_categories:
            return self.config.curated_factor
        url = document.metadata.get("url")
        return self.config.unlisted_factor if url and self.sites and not self.is_listed(url) else 1.0

    def is_listed(self, url: str) -> bool:
        """Whether the site of an address or a domain above it is on the list."""
        try:
            host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
        except ValueError:
            return False
        labels = host.lower().rstrip(".").split(".")
        return any(".".join(labels[i:]) in self.sites for i in range(len(labels)))


def find_repetition(text: str, thresholds: RepetitionThresholds, factor: float = 1.0) -> Drop | None:
    """The first of the measures, in datatrove's order, that is above its threshold; None where none is."""
    if len(text) < thresholds.shortest:
        return None
    repetition = measure_repetition(text, list(thresholds.top_n_grams), list(thresholds.duplicate_n_grams))
    for reason, share, threshold, repeated in measures(repetition, thresholds):
        limit = threshold if factor == 1.0 else min(threshold * factor, LOOSEST)
        if threshold and share > limit:
            detail = f"{share:.3f} of {repetition.chars} characters, above {limit:.3g}"
            return Drop(reason, detail, text[max(0, repeated.at - BEFORE) : repeated.at + AFTER])
    return None


def measures(found: Repetition, thresholds: RepetitionThresholds) -> Iterator[tuple[str, float, float, Repeated]]:
    """(Reason, share, threshold, what is repeated) of all measures of a text that is not empty."""
    paragraphs, lines, chars = found.duplicate_paragraphs, found.duplicate_lines, found.chars
    yield "duplicate paragraphs", paragraphs.count / found.paragraphs, thresholds.duplicate_paragraphs, paragraphs
    yield "duplicate paragraph characters", paragraphs.chars / chars, thresholds.duplicate_paragraph_chars, paragraphs
    yield "duplicate lines", lines.count / found.lines, thresholds.duplicate_lines, lines
    yield "duplicate line characters", lines.chars / chars, thresholds.duplicate_line_chars, lines
    for (n, threshold), n_gram in zip(thresholds.top_n_grams.items(), found.top_n_grams, strict=True):
        yield f"top {n}-gram", n_gram.chars / chars, threshold, n_gram
    for (n, threshold), n_grams in zip(thresholds.duplicate_n_grams.items(), found.duplicate_n_grams, strict=True):
        yield f"duplicate {n}-grams", n_grams.chars / chars, threshold, n_grams


def listed_domains(entries: list[str]) -> Iterator[str]:
    """The domains of `listed_sites`, of files too, in lower case and without `www.`; `#` begins a comment."""
    for entry in entries:
        lines = [entry]
        if "/" in entry or os.sep in entry:
            try:
                with open(expand_path(entry), encoding="utf-8") as file:
                    lines = file.read().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"self_repetition.listed_sites: {entry} cannot be read ({error})") from error
        for line in lines:
            domain = line.split("#")[0].strip().lower().strip(".").removeprefix("www.")
            if domain:
                yield domain


def check(config: SelfRepetitionConfig) -> None:
    """Raise ConfigError for an impossible value."""
    for name in ("words", "characters"):
        thresholds: RepetitionThresholds = getattr(config, name)
        if thresholds.shortest < 0:
            raise ConfigError(f"self_repetition.{name}.shortest is {thresholds.shortest}; it must not be negative")
        for key, value in vars(thresholds).items():
            if key == "shortest":
                continue
            shares = value if isinstance(value, dict) else {1: value}
            if not all(n >= 1 and 0 <= share <= 1 for n, share in shares.items()):
                raise ConfigError(f"self_repetition.{name}.{key} is {value}; shares lie between 0 and 1, n from 1 on")
    for key in ("unlisted_factor", "curated_factor"):
        if not getattr(config, key) > 0:
            raise ConfigError(f"self_repetition.{key} is {getattr(config, key)}; give a number above 0")
    if not (config.min_copies >= 3 and 1 <= config.keep_copies < config.min_copies):
        raise ConfigError(
            f"self_repetition: min_copies is {config.min_copies}, keep_copies {config.keep_copies}; give at least 3, "
            "and at least 1 but fewer"
        )
    if not 0 <= config.max_continuous <= 1:
        raise ConfigError(f"self_repetition.max_continuous is {config.max_continuous}; give a share from 0 to 1")
