"""How much text a token holds, for each source and language: one tokenizer, or several side by side."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mindllm_engine.corpus.balanced_sample import SampledSource
from mindllm_engine.corpus.chinese_pieces import CHINESE
from mindllm_engine.corpus.holdout import is_held_out
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.errors import DataError

ALL = "all"
"""The source that stands for all of a language."""

# A Chinese character is a word, and so is what else stands between spaces.
_WORDS = re.compile(f"[{CHINESE}]|[^\\s{CHINESE}]+")
_TEXTS_AT_ONCE = 256


@dataclass
class SourceLengths:
    """What was measured of one source.

    Attributes:
        bytes: in UTF-8.
        words: runs without white space; each Chinese character is one of its own.
        tokens: by tokenizer, without those that begin and end documents.
    """

    lang: str
    source: str
    documents: int = 0
    characters: int = 0
    bytes: int = 0
    words: int = 0
    tokens: dict[str, int] = field(default_factory=dict)

    def add(self, other: "SourceLengths") -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.bytes += other.bytes
        self.words += other.words
        for name, count in other.tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + count

    def record(self) -> dict[str, Any]:
        """All of it and, by tokenizer, characters, bytes and words a token, for JSON. Fertility is tokens a word."""
        rates = {
            "characters_a_token": {name: self.characters / count for name, count in self.tokens.items()},
            "bytes_a_token": {name: self.bytes / count for name, count in self.tokens.items()},
            "fertility": {name: count / self.words for name, count in self.tokens.items()},
        }
        return asdict(self) | rates


def measure_tokenizers(
    tokenizers: dict[str, TextTokenizer],
    sources: list[SampledSource],
    holdout: float,
    text_field: str = "text",
    max_bytes: int | None = None,
) -> list[SourceLengths]:
    """The lengths of each source's text, and behind the sources of a language those of all of them together.

    holdout: measure the documents that training with this share held out; 0 measures all. max_bytes: of each source at
    most about so much. Empty documents are passed over.

    Raises DataError if a source has no such document.
    """
    rows: list[SourceLengths] = []
    for lang in dict.fromkeys(source.lang for source in sources):
        total = SourceLengths(lang, ALL)
        for source in sources:
            if source.lang == lang:
                texts = _chosen(read_texts(source.paths, text_field), holdout, max_bytes)
                row = _measure(SourceLengths(lang, source.name), tokenizers, texts)
                if not row.words:
                    raise DataError(
                        f"{source.name}: has no document to measure; ask for a larger holdout, or 0 for all"
                    )
                rows.append(row)
                total.add(row)
        rows.append(total)
    return rows


def table(rows: list[SourceLengths]) -> str:
    """Markdown: a line a source, three columns a tokenizer."""
    names = list(rows[0].tokens)
    header = ["lang", "source", "documents", "MB"]
    for name in names:
        header += [f"{name}: characters a token", "bytes a token", "tokens a word"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        cells = [row.lang, row.source, f"{row.documents:,}", f"{row.bytes / 1e6:.2f}"]
        for name in names:
            count = row.tokens[name]
            cells += [f"{row.characters / count:.3f}", f"{row.bytes / count:.3f}", f"{count / row.words:.3f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _chosen(texts: Iterable[str], holdout: float, max_bytes: int | None) -> Iterator[str]:
    taken = 0
    for text in texts:
        utf8 = text.encode()
        if text.strip() and (holdout == 0 or is_held_out(utf8, holdout)):
            yield text
            taken += len(utf8)
            if max_bytes is not None and taken >= max_bytes:
                return


def _measure(row: SourceLengths, tokenizers: dict[str, TextTokenizer], texts: Iterator[str]) -> SourceLengths:
    while batch := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        row.documents += len(batch)
        row.characters += sum(map(len, batch))
        row.bytes += sum(len(text.encode()) for text in batch)
        row.words += sum(sum(1 for _ in _WORDS.finditer(text)) for text in batch)
        for name, tokenizer in tokenizers.items():
            tokens, _ = tokenizer.encode_batch(batch)
            row.tokens[name] = row.tokens.get(name, 0) + len(tokens)
    return row
