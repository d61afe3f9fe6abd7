"""Pages: the article and nothing else, whatever the encoding; hostile pages cost bounded time and memory, and the rest
goes through."""

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
from mindllm_engine.corpus.pages.records import Kind, Record
from mindllm_engine.errors import ConfigError
from tests.corpus.pages.made_files import PAGE, PARAGRAPH, ZH_PAGE, ZH_SENTENCE, epub, mobi, palmdoc, pdf

MIB = 1 << 20
SECONDS = 2
MEMORY = 768 * MIB


@pytest.fixture(scope="module", params=["resiliparse", "trafilatura"])
def extractor(request: pytest.FixtureRequest) -> Iterator[Extractor]:
    config = ExtractConfig(
        extractor=request.param, page_seconds=SECONDS, book_seconds=SECONDS, memory_bytes=MEMORY, book_bytes=64 * MIB
    )
    made = Extractor(config)
    yield made
    made.close()


def html(data: str | bytes, charset: str | None = None) -> Record:
    return Record(1, "html", data, {}, charset)


# -- Good pages ---


@pytest.mark.parametrize("data", [PAGE, PAGE.encode(), PAGE.encode("utf-16")])
def test_the_article_of_a_page(extractor: Extractor, data: str | bytes) -> None:
    text = extractor.extract(html(data))
    assert isinstance(text, str)
    assert text.count(PARAGRAPH.strip()) == 18
    for outside in ("hidden", "color", "About us", "Imprint", "<"):
        assert outside not in text
    assert len([line for line in text.split("\n") if line.strip()]) in (6, 7)  # with the heading or not


@pytest.mark.parametrize(("encoding", "charset"), [("utf-8", None), ("gb18030", "gb2312"), ("gb18030", None)])
def test_the_article_of_a_chinese_page(extractor: Extractor, encoding: str, charset: str | None) -> None:
    text = extractor.extract(html(ZH_PAGE.encode(encoding), charset))
    assert isinstance(text, str)
    assert text.count(ZH_SENTENCE) == 20


def test_a_string_is_utf_8_whatever_its_page_declares(extractor: Extractor) -> None:
    text = extractor.extract(html(ZH_PAGE.replace("<html>", "<html><head><meta charset=big5></head>"), "big5"))
    assert isinstance(text, str)
    assert ZH_SENTENCE in text


def test_null_bytes_and_surrogates_in_a_page(extractor: Extractor) -> None:
    page = PAGE.replace("ferry", "fer\0ry").replace("harbour", "harbour&#xD800;&#0;")
    text = extractor.extract(html(page))
    assert isinstance(text, str)
    assert "The ferry left" in text
    assert "\0" not in text
    assert text.encode()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (html(b""), "no text"),
        (html("<html><body><img src=x></body></html>"), "no text"),
        (html(bytes(range(256)) * 40), "not text"),
        (html(b" " * (17 * MIB)), "too large"),
        (Record(1, "text", " \n"), "no text"),
        (Record(1, "text", b"\0" * 99), "not text"),
    ],
)
def test_records_without_text(extractor: Extractor, record: Record, reason: str) -> None:
    drop = extractor.extract(record)
    assert isinstance(drop, Drop)
    assert drop.reason == reason


def test_text_passes_through_without_a_child_process() -> None:
    extractor = Extractor(ExtractConfig())
    assert extractor.extract(Record(1, "text", " as it is\n")) == " as it is\n"
    assert extractor.extract(Record(1, "text", "今天早上港口起了大雾".encode("gb18030"))) == "今天早上港口起了大雾"
    assert extractor.sandbox.started == 0


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="page_seconds is 0; it must be positive"):
        Extractor(ExtractConfig(page_seconds=0))
    with pytest.raises(ConfigError, match="the libraries alone need"):
        Extractor(ExtractConfig(memory_bytes=MIB))


# -- Hostile pages and books ---


def nested_objects(depth: int) -> bytes:
    """A PDF whose page's resources are nested arrays."""
    return pdf(["text"]).replace(b"/MediaBox", b"/X " + b"[" * depth + b"]" * depth + b" /MediaBox")


BOMBS: dict[str, tuple[Kind, bytes]] = {
    "nested elements": ("html", b"<html><body>" + b"<div>" * 100_000 + PAGE.encode()),
    "nested inline elements": ("html", b"<html><body>" + b"<b><i>" * 100_000 + PAGE.encode()),
    "a million attributes": ("html", b"<p " + b" ".join(b"a%d=1" % n for n in range(1_000_000)) + b">" + PAGE.encode()),
    "a line of 15 MB": ("html", b"<p>" + b"word " * 3_000_000),
    "a million elements": ("html", b"<p>word</p>" * 1_000_000),
    "open brackets": ("html", b"<" * 10_000_000),
    "entities": ("html", b"&#x41;&amp" * 1_000_000),
    "open comment": ("html", b"<!--" * 3_000_000),
    "tables": ("html", b"<table><tr><td>" * 100_000),
    "formatting": ("html", b"<p>" + b"<a href=x><b><i>" * 20_000 + b"<p>x" * 20_000),
    "a deep PDF": ("pdf", nested_objects(100_000)),
    "an EPUB of brackets": ("epub", epub({"a": "<" * 30_000_000}, ["a"])),
    "a deep EPUB": ("epub", epub({"a": "<div>" * 100_000}, ["a"])),
    "a large MOBI": ("mobi", mobi([palmdoc(b"<p>" * 20_000)] * 500, compression=2)),
}


class Watch:
    """While entered: the largest memory of this process and its children, looked at all the time."""

    def __enter__(self) -> "Watch":
        self.peak, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.ended.wait(0.02):
            for process in psutil.Process().children():
                try:
                    self.peak = max(self.peak, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_documents_cost_bounded_time_and_memory(extractor: Extractor, name: str) -> None:
    kind, data = BOMBS[name]
    extractor.extract(html(PAGE))
    child = extractor.sandbox.child
    assert child is not None
    started = time.monotonic()
    used = sum(psutil.Process(child.pid).cpu_times()[:2])
    with Watch() as watch:
        found = extractor.extract(Record(1, kind, data))
    assert isinstance(found, str | Drop)
    if isinstance(found, Drop):
        reasons = ("extraction ran out of time", "extraction ran out of memory", "extraction crashed", "no text")
        assert found.reason in (*reasons, "extraction failed", "damaged PDF"), found
    assert watch.peak < MEMORY
    if extractor.sandbox.child is child:
        assert sum(psutil.Process(child.pid).cpu_times()[:2]) - used < SECONDS + 2
    assert time.monotonic() - started < 20 * SECONDS  # on a busy machine; the limit is of processor time
    text = extractor.extract(html(PAGE))
    assert isinstance(text, str)
    assert PARAGRAPH.strip() in text


def test_a_document_over_the_limit_of_memory_is_told(extractor: Extractor) -> None:
    book = pdf(["small"]).replace(b"(small)", b"(" + b"x" * 60 * MIB + b")")
    chapters = {"a": "<p>" + "<b>a</b>" * 7_000_000}
    for kind, data in (("pdf", book), ("epub", epub(chapters, ["a"]))):
        found = extractor.extract(Record(1, kind, data))  # type: ignore[arg-type]
        assert isinstance(found, str) or found.reason in (
            "extraction ran out of memory",
            "extraction crashed",
            "extraction ran out of time",
        )
    assert isinstance(extractor.extract(html(PAGE)), str)
