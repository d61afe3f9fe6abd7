"""Hostile pages and books cost bounded time and memory, and what comes after them goes through."""

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
from mindllm_engine.corpus.pages.records import Kind, Record
from tests.corpus.pages.made_files import PAGE, PARAGRAPH, epub, mobi, palmdoc, pdf

MIB = 1 << 20
SECONDS = 1
MEMORY = 768 * MIB


@pytest.fixture(scope="module", params=["resiliparse", "trafilatura"])
def extractor(request: pytest.FixtureRequest) -> Iterator[Extractor]:
    config = ExtractConfig(
        extractor=request.param, page_seconds=SECONDS, book_seconds=SECONDS, memory_bytes=MEMORY, book_bytes=64 * MIB
    )
    made = Extractor(config)
    yield made
    made.close()


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
    "an EPUB of brackets": ("epub", epub({"a": "<" * 10_000_000}, ["a"])),
    "a deep EPUB": ("epub", epub({"a": "<div>" * 100_000}, ["a"])),
    "a large MOBI": ("mobi", mobi([palmdoc(b"<p>" * 20_000)] * 200, compression=2)),
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
    if kind != "html" and extractor.config.extractor == "trafilatura":
        pytest.skip("books are read the same way with either extractor")
    extractor.extract(Record(1, "html", PAGE))
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
    if extractor.sandbox.child is child and child.poll() is None:
        assert sum(psutil.Process(child.pid).cpu_times()[:2]) - used < SECONDS + 2
    assert time.monotonic() - started < 20 * SECONDS  # on a busy machine; the limit is of processor time
    text = extractor.extract(Record(1, "html", PAGE))
    assert isinstance(text, str)
    assert PARAGRAPH.strip() in text


def test_a_document_over_the_limit_of_memory_is_told() -> None:
    extractor = Extractor(ExtractConfig(page_seconds=60, memory_bytes=512 * MIB))
    drop = extractor.extract(Record(1, "html", "<p>word</p>" * 1_400_000))  # takes some 800 MB
    assert isinstance(drop, Drop)
    # Who notices is a matter of the library, and so are the words.
    assert drop.reason in ("extraction ran out of memory", "extraction crashed", "extraction failed")
    assert extractor.sandbox.started == 1
    assert extractor.extract(Record(1, "html", PAGE))
    extractor.close()


def test_a_child_that_has_grown_decides_nothing() -> None:
    extractor = Extractor(ExtractConfig(page_seconds=60, memory_bytes=700 * MIB))
    large = Record(1, "html", "<p>word</p>" * 700_000)  # takes some 400 MB
    texts = [extractor.extract(large) for _ in range(3)]
    assert [isinstance(text, str) and text.count("word") for text in texts] == [700_000] * 3
    extractor.close()


def test_no_page_is_too_slow_by_its_length_alone() -> None:
    extractor = Extractor(ExtractConfig())
    page = f"<html><body><article>{'<p>' + PARAGRAPH * 2000 + '</p>'}</article></body></html>"
    started = time.monotonic()
    text = extractor.extract(Record(1, "html", (page * 20)[: 4 * MIB]))
    assert isinstance(text, str)
    assert len(text) > 3 * MIB
    assert time.monotonic() - started < 10
    extractor.close()
