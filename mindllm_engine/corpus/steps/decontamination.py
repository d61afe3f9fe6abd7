"""Documents that hold items of evaluation data, such as questions of a benchmark (beyond the MindLLM paper).

Items and documents are compared by n-grams of words, for Chinese of characters (csrc/ngram_overlap.hpp says how texts
are normalised, and which n-grams and items are left out). A document that covers a large share of any item is dropped.
"""

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from datatrove.data import Document, DocumentsPipeline

from mindllm_engine._native import OverlapIndex
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.corpus.steps.step import CorpusStep
from mindllm_engine.errors import ConfigError, DataError

# Characters before and after an item that a dropped document's excerpt shows.
AROUND = 100
# Of an item that a document covers in pieces far apart.
LONGEST_EXCERPT = 800


@dataclass
class EvaluationFile:
    """Evaluation data."""

    path: str
    """JSON lines, plain or gzip. `~` and environment variables are expanded."""
    fields: list[str]
    """The fields of a record that are its item, one after the other: strings, numbers, or lists of them."""


@dataclass
class DecontaminationConfig:
    """Which evaluation data must not be in the corpus. The paper has no such step."""

    files: list[EvaluationFile] = field(default_factory=list)
    """The evaluation data. A file may be named twice: with its question alone, and with the choices too."""
    words_n: int = 13
    """Words in an n-gram (GPT-3, arXiv 2005.14165, appendix C)."""
    chars_n: int = 16
    """Characters in an n-gram of Chinese. (13 words are 21 characters; at 16 more paraphrases are found, and of 35,000
    clean Chinese texts still none holds an item of CMMLU.)"""
    min_words: int = 8
    """A shorter item than an n-gram is looked for as a whole, if it has so many words."""
    min_chars: int = 13
    """The same for characters of Chinese."""
    max_items: int = 10
    """N-grams in more items than this are left out: phrases that questions begin with."""
    max_share: float = 0.4
    """A document that covers a larger share of the words of an item is dropped. (Of 45,000 clean texts three hold so
    much of an item of MMLU, CMMLU, HellaSwag or GSM8K: exercises of the same wording as one of GSM8K.)"""


class Decontamination(CorpusStep):
    """Drops documents that hold items of evaluation data. Counts by file, and the items that cannot be looked for.

    Raises ConfigError for an impossible value, and DataError for a file that is missing.
    """

    name = "decontamination"

    def __init__(self, config: DecontaminationConfig) -> None:
        super().__init__()
        check(config)
        self.config = config
        self.index: OverlapIndex | None = None
        self.first_items: list[int] = []  # of each file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"index": None, "first_items": []}

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See CorpusStep. Raises DataError for bad evaluation data, which must not pass for bad documents."""
        if self.index is None:
            self.load()
        yield from super().run(data, rank, world_size)

    def apply(self, document: Document) -> Drop | None:
        """See CorpusStep."""
        if not self.config.files:
            return None
        if self.index is None:
            self.load()
        assert self.index is not None
        overlaps = [
            overlap
            for overlap in self.index.find(document.text, self.config.max_share)
            if overlap.covered > self.config.max_share * overlap.words
        ]
        if not overlaps:
            return None
        places = [self.place(overlap.item) for overlap in overlaps]
        for name in sorted({name for name, _ in places}):
            self.count(f"documents with items of {name}")
        most, (name, record) = max(
            zip(overlaps, places, strict=True), key=lambda pair: (pair[0].covered, pair[0].covered / pair[0].words)
        )
        detail = f"{name}, record {record}: {most.covered} of its {most.words} words"
        if len(overlaps) > 1:
            detail += f", and {len(overlaps) - 1} more items"
        begin = max(0, most.begin - AROUND)
        excerpt = document.text[begin : min(most.end + AROUND, begin + LONGEST_EXCERPT)]
        return Drop("benchmark item", detail, excerpt)

    def load(self) -> None:
        """Make the index of all items."""
        config = self.config
        index = OverlapIndex(
            words_n=config.words_n,
            chars_n=config.chars_n,
            min_words=config.min_words,
            min_chars=config.min_chars,
            max_items=config.max_items,
        )
        self.first_items = []
        for file in config.files:
            self.first_items.append(index.items)
            for item in read_items(file):
                index.add(item)
        index.finish()
        self.index = index

    def place(self, item: int) -> tuple[str, int]:
        """The name of an item's file and the number of its record, from 1."""
        number = max(i for i, first in enumerate(self.first_items) if first <= item)
        return os.path.basename(self.config.files[number].path), item - self.first_items[number] + 1


def read_items(file: EvaluationFile) -> Iterator[str]:
    """The text of each record. Raises DataError for one that does not have it, with its place."""
    path = expand_path(file.path)
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield item_text(line, file.fields, f"{file.path}, line {number}")
    except (OSError, EOFError) as error:
        raise DataError(f"evaluation data {file.path} cannot be read ({error})") from error


def item_text(line: bytes, fields: list[str], place: str) -> str:
    """The chosen fields of a record, one a line."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    parts: list[str] = []
    for name in fields:
        value = record.get(name) if isinstance(record, dict) else None
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, bool) or not isinstance(part, str | int | float):
                raise DataError(f"{place}: field '{name}' is missing or no text; set fields to what records have")
            parts.append(str(part))
    return "\n".join(parts)


def check(config: DecontaminationConfig) -> None:
    """Raise ConfigError for an impossible value, DataError for a file that is missing."""
    for file in config.files:
        if not os.path.isfile(expand_path(file.path)):
            raise DataError(f"decontamination.files: there is no file {file.path}")
        if not file.fields:
            raise ConfigError(f"decontamination.files: {file.path} has no fields; name those that are the item")
    for n, least in (("words_n", "min_words"), ("chars_n", "min_chars")):
        if not 1 <= getattr(config, least) <= getattr(config, n) <= OverlapIndex.MAX_N:
            raise ConfigError(
                f"decontamination: {least} is {getattr(config, least)}, {n} is {getattr(config, n)}; give numbers from "
                f"1 to {OverlapIndex.MAX_N}, the first not above the second"
            )
    if config.max_items < 1:
        raise ConfigError(f"decontamination.max_items is {config.max_items}; give at least 1")
    if not 0 < config.max_share < 1:
        raise ConfigError(f"decontamination.max_share is {config.max_share}; give a share between 0 and 1")
