"""The third step: drops pages of low quality and identifies the language (section 2 of the MindLLM paper).

The paper drops pages with a text density under 75 % or fewer than 100 Chinese characters. It does not say how density
is measured; here it is the share of characters that are letters, digits, spaces or ordinary punctuation, in which a run
of one character counts as three at most (csrc/text_profile.hpp). What is left out is the matter of menus, tables of
signs and markup.
"""

from dataclasses import dataclass, field

from datatrove.data import Document

from mindllm_engine._native import TextProfile, profile_text
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.steps.advertisements import promotion
from mindllm_engine.corpus.steps.language import identify_language
from mindllm_engine.corpus.steps.step import CorpusStep
from mindllm_engine.errors import ConfigError


@dataclass
class LowQualityConfig:
    """Which texts are too poor."""

    languages: list[str] = field(default_factory=lambda: ["zh", "en"])
    """ISO 639-1 codes of those to keep; the paper's two."""
    min_text_density: float = 0.75
    """Texts with a smaller share of text are dropped; the paper's value."""
    min_chinese_chars: int = 100
    """Chinese pages with fewer Chinese characters are dropped; the paper's value."""
    min_words: int = 20
    """Pages in other languages with fewer words are dropped. The paper has no number for them; this is about as much
    text as 30 Chinese characters, enough to be rid of error pages and crumbs of navigation."""
    min_length_of: dict[str, int] = field(default_factory=dict)
    """For sources whose documents are no web pages (poems, comments, questions, source files): their own minimum, in
    place of the two above, in Chinese characters or words. By the name of the source."""
    max_promotion_share: float = 0.12
    """Pages are dropped as advertisements if contacts and promotional phrases make up more than this share of their
    characters. The paper drops advertisements without a number."""
    min_promotions: int = 4
    """How many contacts and phrases an advertisement has at least, one of them a contact."""
    max_advertisement_chars: int = 3000
    """Longer texts are not searched for advertisements."""

    def validate(self) -> None:
        """Raises ConfigError for what cannot be."""
        if not self.languages:
            raise ConfigError("low_quality.languages is empty; name one language at least, such as zh")
        for name in ("min_text_density", "max_promotion_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"low_quality.{name} is {getattr(self, name)}; give a share from 0 to 1")
        for source, minimum in self.min_length_of.items():
            if minimum < 0:
                raise ConfigError(f"low_quality.min_length_of.{source} is {minimum}; give 0 or more")
        for name in ("min_chinese_chars", "min_words", "min_promotions", "max_advertisement_chars"):
            if getattr(self, name) < 0:
                raise ConfigError(f"low_quality.{name} is {getattr(self, name)}; give 0 or more")


class LowQuality(CorpusStep):
    """See above. Sets `metadata["lang"]`."""

    name = "low quality"

    def __init__(self, config: LowQualityConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config

    def apply(self, document: Document) -> Drop | None:
        """See CorpusStep."""
        text, profile = document.text, profile_text(document.text)
        if (density := text_density(profile)) < self.config.min_text_density:
            return Drop("text density", f"{density:.2f} of {profile.characters:,} characters")
        language = identify_language(text, profile)
        document.metadata["lang"] = language
        # Before the language is judged: of a short page it is a guess.
        source = document.metadata.get("source", "")
        drop = self.too_short(source, language, profile) or self.advertisement(text, profile)
        if drop is not None:
            return drop
        if language not in self.config.languages:
            return Drop("language", language)
        self.count(f"language: {language}")
        return None

    def too_short(self, source: str, language: str, profile: TextProfile) -> Drop | None:
        """A page with hardly any text."""
        config = self.config
        if language == "zh":
            if profile.han < config.min_length_of.get(source, config.min_chinese_chars):
                return Drop("too short", f"{profile.han} Chinese characters")
        elif profile.words + profile.han + profile.kana < config.min_length_of.get(source, config.min_words):
            return Drop("too short", f"{profile.words} words")
        return None

    def advertisement(self, text: str, profile: TextProfile) -> Drop | None:
        """A page that promotes."""
        if profile.characters > self.config.max_advertisement_chars:
            return None
        found = promotion(text, profile)
        enough = found.contacts > 0 and found.contacts + found.phrases >= self.config.min_promotions
        if enough and found.share > self.config.max_promotion_share:
            return Drop("advertisement", str(found))
        return None


def text_density(profile: TextProfile) -> float:
    """The share of a text that is text; 0 for an empty one."""
    return profile.text / profile.counted if profile.counted else 0.0
