"""Pages: the article and nothing else, whatever the encoding."""

from collections.abc import Iterator

import pytest

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
from mindllm_engine.corpus.pages.records import Record
from mindllm_engine.errors import ConfigError
from tests.corpus.pages.made_files import PAGE, PARAGRAPH, ZH_PAGE, ZH_SENTENCE

MIB = 1 << 20


@pytest.fixture(scope="module", params=["resiliparse", "trafilatura"])
def extractor(request: pytest.FixtureRequest) -> Iterator[Extractor]:
    made = Extractor(ExtractConfig(extractor=request.param))
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
        (html(bytes(range(256)) * 40), "unknown encoding"),
        (html(bytes(range(32)) * 40), "not text"),
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
