"""Personal data: identity numbers, phone numbers, bank cards, e-mail and IP addresses are replaced by special tokens.

Section 2 of the MindLLM paper removes personal information; it gives no forms. Ours, and what keeps numbers that only
look alike, are in csrc/personal_data.hpp. No document is dropped.
"""

from dataclasses import dataclass

from datatrove.data import Document

from mindllm_engine import _native
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.special_tokens import PERSONAL_DATA_TOKENS
from mindllm_engine.corpus.steps.step import CorpusStep

# In the order of PERSONAL_DATA_TOKENS.
COUNTERS = (
    "identity numbers replaced",
    "phone numbers replaced",
    "bank cards replaced",
    "e-mail addresses replaced",
    "IP addresses replaced",
)


@dataclass
class PersonalDataConfig:
    """What is replaced beyond the usual."""

    old_id_numbers: bool = False
    """Identity numbers of 15 digits as well, which were issued until 1999. They have no check digit: one in 60 of all
    numbers of that length with a region's first digits looks like one."""
    reserved_addresses: bool = False
    """Addresses that belong to nobody as well: 127.0.0.1, 192.168.1.1 and others that RFC 6890 reserves,
    user@example.com and others of RFC 2606, git@github.com. By default they stay: they say nothing about anyone, and
    manuals and programs are full of them."""


class PersonalData(CorpusStep):
    """Counts what it replaces by kind, and the documents in which it did."""

    name = "personal data"

    def __init__(self, config: PersonalDataConfig) -> None:
        super().__init__()
        self.config = config

    def apply(self, document: Document) -> Drop | None:
        """See CorpusStep."""
        document.text, counts = _native.replace_personal_data(
            document.text,
            PERSONAL_DATA_TOKENS,
            old_id_numbers=self.config.old_id_numbers,
            reserved=self.config.reserved_addresses,
        )
        for counter, number in zip(COUNTERS, counts, strict=True):
            self.count(counter, number)
        self.count("documents changed", int(any(counts)))
        return None
