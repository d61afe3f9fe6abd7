"""The text of a MOBI or AZW3 book: records of a Palm database, compressed, that add up to HTML.

The layout is MobileRead's description of the format (wiki.mobileread.com/wiki/MOBI, .../PDB). Numbers are big-endian.
Record 0 holds the PalmDOC header (16 bytes) and the MOBI header; the text follows from record 1 on. In an AZW3 (KF8)
that text is the pages' HTML, then style sheets and pictures, which the FDST record delimits; a file that holds the book
in both formats has MOBI first, which is read.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from mindllm_engine.corpus.pages.decoding import decode
from mindllm_engine.corpus.pages.html import chapter_text
from mindllm_engine.corpus.pages.mobi_compression import HuffmanReader, unpack_palmdoc
from mindllm_engine.corpus.pages.unreadable import ENCRYPTED, NO_TEXT, TOO_LARGE, Unreadable

DAMAGED = "damaged MOBI"
_CODEPAGES = {1252: "windows-1252", 65001: "utf-8"}
_NONE, _PALMDOC, _HUFFMAN = 1, 2, 17480
_ABSENT = 0xFFFFFFFF


def mobi_text(data: bytes, max_bytes: int) -> str:
    """Raises Unreadable for what is encrypted, damaged, without text, or unpacks to more than `max_bytes`."""
    try:
        records = _records(data)
        header = _read_header(records[0])
        html = _raw_text(records, header, max_bytes)
    except (struct.error, IndexError, ValueError) as error:
        raise Unreadable(DAMAGED, f"{type(error).__name__}: {error}"[:200]) from None
    text = chapter_text(decode(html, [header.encoding])).strip()
    if not text:
        raise Unreadable(NO_TEXT, "MOBI")
    return text


@dataclass(frozen=True)
class _Header:
    """What record 0 says of the text.

    Attributes:
        trailing: flags of what stands behind the text in each text record.
        huffman, huffman_records: first record of the code tables and their number.
        flows: record that delimits pages and style sheets, if any.
    """

    compression: int
    text_records: int
    encoding: str
    trailing: int = 0
    huffman: int = 0
    huffman_records: int = 0
    flows: int | None = None


def _records(data: bytes) -> list[bytes]:
    """Those of a Palm database, as slices."""
    if data[60:68] not in (b"BOOKMOBI", b"TEXtREAd"):
        raise Unreadable(DAMAGED, "no Palm database of a book")
    (count,) = struct.unpack_from(">H", data, 76)
    starts = [start for (start, _) in struct.iter_unpack(">II", data[78 : 78 + 8 * count])]
    if len(starts) < count or count == 0 or starts != sorted(starts) or starts[0] < 78 + 8 * count:
        raise Unreadable(DAMAGED, "the list of records is cut off or out of order")
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _read_header(record: bytes) -> _Header:
    compression, _, _, text_records, _, encryption = struct.unpack_from(">HHIHHH", record)
    if encryption:
        raise Unreadable(ENCRYPTED, "MOBI with DRM")
    if record[16:20] != b"MOBI":
        return _Header(compression, text_records, "windows-1252")
    length, _, codepage, _, version = struct.unpack_from(">5I", record, 20)
    header = record[: 16 + length]
    huffman, huffman_records = struct.unpack_from(">II", header, 0x70) if len(header) >= 0x78 else (0, 0)
    (trailing,) = struct.unpack_from(">H", header, 0xF2) if len(header) >= 0xF4 else (0,)
    (flows,) = struct.unpack_from(">I", header, 0xC0) if version >= 8 and len(header) >= 0xC4 else (_ABSENT,)
    encoding = _CODEPAGES.get(codepage, "utf-8")
    return _Header(
        compression, text_records, encoding, trailing, huffman, huffman_records, None if flows == _ABSENT else flows
    )


def _raw_text(records: list[bytes], header: _Header, max_bytes: int) -> bytes:
    """The HTML of a book."""
    if header.text_records >= len(records):
        raise Unreadable(DAMAGED, f"{header.text_records} records of text, {len(records)} in the file")
    unpack: Callable[[bytes], bytes]
    if header.compression == _HUFFMAN:
        tables = records[header.huffman : header.huffman + header.huffman_records]
        unpack = HuffmanReader(tables, max_bytes).unpack
    elif header.compression == _PALMDOC:
        unpack = unpack_palmdoc
    elif header.compression == _NONE:
        unpack = bytes
    else:
        raise Unreadable(DAMAGED, f"unknown compression {header.compression}")
    parts, total = [], 0
    for record in records[1 : 1 + header.text_records]:
        parts.append(unpack(_without_trailing(record, header.trailing)))
        total += len(parts[-1])
        if total > max_bytes:
            raise Unreadable(TOO_LARGE, f"MOBI that unpacks to over {max_bytes} bytes")
    text = b"".join(parts)
    if header.flows is not None and records[header.flows][:4] == b"FDST":
        start, end = struct.unpack_from(">II", records[header.flows], 12)
        text = text[start:end]
    return text


def _without_trailing(record: bytes, flags: int) -> bytes:
    """A text record without the entries behind its text: one for each bit of the flags, the lowest one innermost."""
    end = len(record)
    for _ in range((flags >> 1).bit_count()):
        end -= _backward_number(record, end)
    if flags & 1 and end > 0:  # the rest of a character that began in this record, and their number
        end -= (record[end - 1] & 3) + 1
    if end < 0:
        raise Unreadable(DAMAGED, "a record shorter than what trails it")
    return record[:end]


def _backward_number(record: bytes, end: int) -> int:
    """The number whose last byte stands before `end`: 7 bits a byte, the top bit set in its first; 4 bytes at most."""
    value = 0
    for place, byte in enumerate(reversed(record[max(0, end - 4) : max(0, end)])):
        value |= (byte & 0x7F) << (7 * place)
        if byte & 0x80:
            break
    return value
