"""The text of a raw record (`records.py`): of pages the article, of books everything.

Whatever is parsed is parsed in a child process (`sandbox.py`) with limits of memory and processor time, since a page of
a few kilobytes can keep a parser busy for hours. Text that is already text passes through.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.pages.decoding import decode
from mindllm_engine.corpus.pages.records import Record
from mindllm_engine.corpus.pages.sandbox import Failure, Sandbox
from mindllm_engine.corpus.pages.unreadable import NO_TEXT, TOO_LARGE, Unreadable
from mindllm_engine.errors import ConfigError


@dataclass
class ExtractConfig:
    """How text is taken from pages and books."""

    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """Of pages: resiliparse, some 300 a second, or trafilatura in its quality mode, 30 a second and more exact."""
    page_bytes: int = 16 << 20
    """A larger page is dropped."""
    book_bytes: int = 256 << 20
    """A PDF, EPUB or MOBI that is larger, packed or unpacked, is dropped."""
    page_seconds: int = 10
    """Processor time for one page."""
    book_seconds: int = 300
    """Processor time for one book."""
    memory_bytes: int = 2 << 30
    """Address space of the process that extracts, one for each task at work."""

    def validate(self) -> None:
        """Raises ConfigError naming the first impossible value."""
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"extract.{name} is {value}; it must be positive")
        if self.memory_bytes < _LEAST_MEMORY:
            raise ConfigError(f"extract.memory_bytes is {self.memory_bytes}; the libraries alone need {_LEAST_MEMORY}")


_LEAST_MEMORY = 512 << 20


class Extractor:
    """Made in the process that uses it, for many records; `close` ends its child process.

    Raises ConfigError for an impossible value.
    """

    def __init__(self, config: ExtractConfig) -> None:
        config.validate()
        self.config = config
        settings = {"extractor": config.extractor, "book_bytes": config.book_bytes}
        self.sandbox = Sandbox(settings, config.memory_bytes, config.book_bytes)

    def extract(self, record: Record) -> str | Drop:
        """The text, which can be encoded as UTF-8 and is not blank, or why there is none.

        Raises MindLLMError if the child process cannot be started.
        """
        text = self.plain_text(record) if record.kind == "text" else self.parsed_text(record)
        if isinstance(text, str) and not text.strip():
            return Drop(NO_TEXT)
        return text

    def plain_text(self, record: Record) -> str | Drop:
        if isinstance(record.data, str):
            return record.data
        try:
            return decode(record.data)
        except Unreadable as error:
            return Drop(error.reason, error.detail)

    def parsed_text(self, record: Record) -> str | Drop:
        config = self.config
        is_page = record.kind == "html"
        data, charset = record.data, record.charset
        if isinstance(data, str):
            # The mark says that it is UTF-8, whatever the page declares.
            data, charset = b"\xef\xbb\xbf" + data.encode(), None
        if len(data) > (config.page_bytes if is_page else config.book_bytes):
            return Drop(TOO_LARGE, f"{len(data)} bytes")
        seconds = config.page_seconds if is_page else config.book_seconds
        text = self.sandbox.call({"kind": record.kind, "charset": charset}, data, seconds)
        return Drop(text.reason, text.detail) if isinstance(text, Failure) else text

    def close(self) -> None:
        """End the child process. The next record starts another."""
        self.sandbox.close()
