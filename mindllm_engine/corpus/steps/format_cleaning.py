"""The second step: text that was decoded wrongly is mended or dropped, and the format of the rest is cleaned
(section 2 of the MindLLM paper). The work is done in C++ (csrc/text_cleaning.hpp) and in mojibake.py.
"""

from dataclasses import dataclass

from datatrove.data import Document

from mindllm_engine._native import clean_format, profile_text
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.steps.mojibake import find_garbled, mend
from mindllm_engine.corpus.steps.step import CorpusStep
from mindllm_engine.errors import ConfigError


@dataclass
class FormatCleaningConfig:
    """What is removed from within texts, and which are garbled."""

    max_lost_share: float = 0.01
    """Texts of which more characters than this share are lost to wrong decoding (U+FFFD, 锟斤拷, private use) are
    dropped. The paper removes garbled text without a number; of real Chinese pages one in a thousand has any."""

    def validate(self) -> None:
        """Raises ConfigError for what cannot be."""
        if not 0 <= self.max_lost_share <= 1:
            raise ConfigError(f"format_cleaning.max_lost_share is {self.max_lost_share}; give a share from 0 to 1")


class FormatCleaning(CorpusStep):
    """See above. Drops "garbled text" and texts of which cleaning leaves nothing."""

    name = "format cleaning"

    def __init__(self, config: FormatCleaningConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config

    def apply(self, document: Document) -> Drop | None:
        """See CorpusStep."""
        limit = self.config.max_lost_share
        garbled = find_garbled(document.text, profile_text(document.text), limit)
        if garbled is not None:
            mended = mend(document.text, garbled, limit)
            if mended is None:
                return Drop("garbled text", garbled.value)
            if mended != document.text:
                self.count(f"mended: {garbled.value}")
            document.text = mended
        cleaned, removed = clean_format(document.text)
        if not cleaned:
            return Drop("nothing left")
        document.text = cleaned
        for kind, number in removed.items():
            self.count(kind, number)
        return None
