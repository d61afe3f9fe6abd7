"""Books: what comes out is the text that went in, for every kind of file; damage and locks are told apart."""

import contextlib
import io
import random
import struct
import zipfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
from mindllm_engine.corpus.pages.mobi_compression import HuffmanReader, unpack_palmdoc
from mindllm_engine.corpus.pages.records import Kind, Record
from tests.corpus.pages.made_files import (
    ZH_SENTENCE,
    encrypted_pdf,
    epub,
    huffman,
    mobi,
    packed_bits,
    palm_database,
    palmdoc,
    pdf,
)

HTML = (
    "<html><body><p>First — “quoted” and naïve.</p><p>"
    + ZH_SENTENCE
    + "</p><p>"
    + "again " * 300
    + "</p></body></html>"
)
TEXT = ["First — “quoted” and naïve.", ZH_SENTENCE, ("again " * 300).strip()]


@pytest.fixture(scope="module")
def extractor() -> Iterator[Extractor]:
    made = Extractor(ExtractConfig(book_bytes=8 << 20))
    yield made
    made.close()


def text_of(extractor: Extractor, kind: Kind, data: bytes) -> str:
    text = extractor.extract(Record(1, kind, data))
    assert isinstance(text, str), text
    return text


def drop_of(extractor: Extractor, kind: Kind, data: bytes) -> Drop:
    drop = extractor.extract(Record(1, kind, data))
    assert isinstance(drop, Drop), drop[:100]
    return drop


def paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


# -- PDF ---


def test_the_pages_of_a_pdf_come_in_order(extractor: Extractor) -> None:
    assert paragraphs(text_of(extractor, "pdf", pdf(["One page here", "Two pages", "Three"]))) == [
        "One page here",
        "Two pages",
        "Three",
    ]


def test_an_encrypted_pdf_is_told(extractor: Extractor) -> None:
    assert drop_of(extractor, "pdf", encrypted_pdf(["secret"])).reason == "encrypted"


def test_a_pdf_anyone_may_open_is_read_though_encrypted(extractor: Extractor) -> None:
    writer, file = PdfWriter(PdfReader(io.BytesIO(pdf(["Open to all"])))), io.BytesIO()
    writer.encrypt("", "owner", algorithm="RC4-128")
    writer.write(file)
    assert text_of(extractor, "pdf", file.getvalue()) == "Open to all"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.4 and nothing", "damaged PDF"),
        (b"no pdf at all", "damaged PDF"),
        (pdf([""]), "no text"),
    ],
)
def test_a_pdf_without_text(extractor: Extractor, data: bytes, reason: str) -> None:
    assert drop_of(extractor, "pdf", data).reason == reason


def test_a_pdf_cut_anywhere_never_hurts(extractor: Extractor) -> None:
    whole = pdf(["One page here", "Two pages"])
    for end in range(0, len(whole), 37):
        assert isinstance(extractor.extract(Record(1, "pdf", whole[:end])), str | Drop)
    assert extractor.sandbox.started == 1
    assert "Two pages" in text_of(extractor, "pdf", whole)


# -- EPUB ---


def test_chapters_of_an_epub_come_in_the_order_of_the_spine(extractor: Extractor) -> None:
    chapters = {"b": "<p>Second chapter</p>", "a": f"<h1>One</h1><p>{ZH_SENTENCE}</p>", "toc": "<p>Contents</p>"}
    text = text_of(extractor, "epub", epub(chapters, ["toc", "a", "b", "a"]))
    assert paragraphs(text) == ["One", ZH_SENTENCE, "Second chapter"]


@pytest.mark.parametrize(
    ("algorithm", "readable"),
    [("http://www.idpf.org/2008/embedding", True), ("http://www.w3.org/2001/04/xmlenc#aes256-cbc", False)],
)
def test_an_epub_with_drm_is_told_from_one_with_scrambled_fonts(
    extractor: Extractor, algorithm: str, readable: bool
) -> None:
    encryption = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:enc="http://www.w3.org/2001/04/xmlenc#">'
        f'<enc:EncryptedData><enc:EncryptionMethod Algorithm="{algorithm}"/></enc:EncryptedData></encryption>'
    )
    data = epub({"a": "<p>Some words</p>"}, ["a"], {"META-INF/encryption.xml": encryption})
    found = extractor.extract(Record(1, "epub", data))
    assert found == "Some words" if readable else isinstance(found, Drop) and found.reason == "encrypted"


def test_a_zip_bomb_is_dropped_by_what_it_declares(extractor: Extractor) -> None:
    data = epub({"a": "x" * (64 << 20)}, ["a"])
    assert len(data) < 1 << 20
    assert drop_of(extractor, "epub", data).reason == "too large"


def test_a_zip_bomb_is_dropped_by_what_all_its_chapters_unpack_to(extractor: Extractor) -> None:
    chapters = {f"c{number}": "x" * (1 << 20) for number in range(20)}
    assert drop_of(extractor, "epub", epub(chapters, list(chapters))).reason == "too large"


def test_a_zip_bomb_that_declares_little_is_dropped(extractor: Extractor) -> None:
    size = 64 << 20
    data = bytearray(epub({"a": "x" * (size - 66)}, ["a"]))
    real = struct.pack("<I", size - 66 + len('<html xmlns="http://www.w3.org/1999/xhtml"><body></body></html>'))
    assert data.count(real) == 2  # in the file's own head and in the directory
    assert drop_of(extractor, "epub", bytes(data.replace(real, struct.pack("<I", 1000)))).reason == "damaged EPUB"


@pytest.mark.parametrize("cut", [0.2, 0.9])
def test_an_epub_that_is_cut_off(extractor: Extractor, cut: float) -> None:
    data = epub({"a": "<p>Some words</p>"}, ["a"])
    assert drop_of(extractor, "epub", data[: int(len(data) * cut)]).reason == "damaged EPUB"


def test_entities_of_an_epubs_package_reach_no_file(
    extractor: Extractor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("secret") / "words.txt"
    secret.write_text("OPS/package.opf")
    container = (
        f'<!DOCTYPE c [<!ENTITY s SYSTEM "file://{secret}">]>'
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles><rootfile full-path="&s;"/></rootfiles></container>'
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("META-INF/container.xml", container)
    assert drop_of(extractor, "epub", file.getvalue()).reason == "damaged EPUB"


# -- MOBI ---


def halves(data: bytes) -> list[bytes]:
    return [data[: len(data) // 2], data[len(data) // 2 :]]


def test_a_mobi_without_compression(extractor: Extractor) -> None:
    assert paragraphs(text_of(extractor, "mobi", mobi(halves(HTML.encode())))) == TEXT


def test_a_mobi_in_windows_1252(extractor: Extractor) -> None:
    html = HTML.replace(ZH_SENTENCE, "x")
    text = text_of(extractor, "mobi", mobi([html.encode("cp1252")], codepage=1252))
    assert paragraphs(text)[0] == TEXT[0]


def test_a_mobi_compressed_by_palmdoc(extractor: Extractor) -> None:
    packed = [palmdoc(half) for half in halves(HTML.encode())]
    assert sum(map(len, packed)) < len(HTML.encode()) / 2
    assert paragraphs(text_of(extractor, "mobi", mobi(packed, compression=2))) == TEXT


def test_what_trails_text_records_is_no_text(extractor: Extractor) -> None:
    # Bits 0 and 2: the overlap of a character stands before an entry that tells its own length from behind.
    records = [half + b"zz\x02" + b"entry" + bytes([0x80 | 6]) for half in halves(HTML.encode())]
    assert paragraphs(text_of(extractor, "mobi", mobi(records, trailing=0b101))) == TEXT


def test_style_sheets_of_an_azw3_are_left_out(extractor: Extractor) -> None:
    html = HTML.encode()
    flows = b"FDST" + struct.pack(">IIIIII", 12, 2, 0, len(html), len(html), len(html) + 20)
    book = mobi(halves(html + b"p { color: visible }"), [flows], version=8, flows=True)
    assert paragraphs(text_of(extractor, "mobi", book)) == TEXT


def test_a_mobi_compressed_by_huffman_codes(extractor: Extractor) -> None:
    alphabet = sorted(set(HTML.encode()))
    phrases = [bytes([byte]) for byte in alphabet]
    literal = [True] * len(phrases)
    _, _, codes = huffman([*phrases, b"", b""], [True] * (len(phrases) + 2), 2)
    # Two phrases are made of other phrases, and have long codes.
    again = packed_bits("".join(codes[alphabet.index(byte)] for byte in b"again "))
    twice = packed_bits(codes[len(phrases)] * 4)  # 40 bits: whole bytes
    phrases += [again, twice]
    huff, cdic, codes = huffman(phrases, [*literal, False, False], 2)
    html, bits = HTML.encode(), ""
    place = 0
    while place < len(html):
        if html.startswith(b"again " * 4, place):
            bits += codes[-1]
            place += 24
        else:
            bits += codes[alphabet.index(html[place])]
            place += 1
    book = mobi([packed_bits(bits)], [huff, *cdic], compression=17480)
    assert paragraphs(text_of(extractor, "mobi", book)) == TEXT


def test_phrases_that_unpack_without_end_are_dropped(extractor: Extractor) -> None:
    count = 40
    _, _, codes = huffman([b""] * count, [True] * count, 1)
    phrases = [b"x" * 64, *(packed_bits(codes[number] * 8) for number in range(count - 1))]  # each 8 times the last
    huff, cdic, codes = huffman(phrases, [True, *[False] * (count - 1)], 1)
    book = mobi([packed_bits(codes[-1])], [huff, *cdic], compression=17480)
    assert drop_of(extractor, "mobi", book).reason == "too large"
    itself = [packed_bits(codes[0])]
    huff, cdic, codes = huffman([*itself, b"x"], [False, True], 1)
    book = mobi([packed_bits(codes[0])], [huff, *cdic], compression=17480)
    assert drop_of(extractor, "mobi", book).reason == "damaged MOBI"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (mobi([HTML.encode()], encryption=2), "encrypted"),
        (mobi([HTML.encode()], compression=3), "damaged MOBI"),
        (mobi([HTML.encode()], compression=17480), "damaged MOBI"),
        (mobi([b"<p> </p>"]), "no text"),
        (palm_database([b"\0\1"]), "damaged MOBI"),
        (b"TPZ0 another format", "damaged MOBI"),
        (mobi([b"\xbf\xff"], compression=2), "damaged MOBI"),
    ],
)
def test_a_mobi_without_text(extractor: Extractor, data: bytes, reason: str) -> None:
    assert drop_of(extractor, "mobi", data).reason == reason


def test_a_mobi_cut_anywhere_never_hurts(extractor: Extractor) -> None:
    whole = mobi([palmdoc(half) for half in halves(HTML.encode())], compression=2)
    ends = random.Random(1).sample(range(len(whole)), 60)
    found = [extractor.extract(Record(1, "mobi", whole[:end])) for end in ends]
    assert all(isinstance(each, str | Drop) for each in found)
    assert extractor.sandbox.started == 1


@given(st.lists(st.sampled_from([b"abc", b" of", b" ", b"\0", b"\xe4\xbd\xa0", b"\x05", b"aaaaaaaaaaaa"]), max_size=60))
def test_palmdoc_round_trip(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert unpack_palmdoc(palmdoc(data)) == data


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_damaged_compression_raises_what_is_caught(data: bytes, record: bytes) -> None:
    for unpack in (unpack_palmdoc, lambda record: HuffmanReader([b"HUFF" + data, b"CDIC" + data], 1000).unpack(record)):
        with contextlib.suppress(ValueError, struct.error):
            assert isinstance(unpack(record), bytes)
