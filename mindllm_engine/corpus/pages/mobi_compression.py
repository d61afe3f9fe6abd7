"""The two compressions of text records in MOBI books: PalmDOC's (LZ77 by bytes) and HUFF/CDIC (Huffman codes of
phrases, which are made of phrases).
"""

import struct

from mindllm_engine.corpus.pages.unreadable import TOO_LARGE, Unreadable

_CODE_BITS = 32
_LITERAL = 0x8000
_MAX_DEPTH = 64


def unpack_palmdoc(data: bytes) -> bytes:
    """A record. Output is at most some 5 times as long. Raises ValueError where it refers to before its beginning.

    Byte 0 and 9 to 0x7F stand for themselves; 1 to 8 for so many bytes that follow; from 0x80 on 14 bits tell distance
    (11) and length less 3 (3); from 0xC0 on a space and the byte without its top bit.
    """
    text = bytearray()
    place, end = 0, len(data)
    while place < end:
        byte = data[place]
        place += 1
        if byte >= 0xC0:
            text.append(0x20)
            text.append(byte ^ 0x80)
        elif byte >= 0x80:
            if place == end:
                break
            pair = (byte << 8 | data[place]) & 0x3FFF
            place += 1
            distance, length = pair >> 3, (pair & 7) + 3
            if not 0 < distance <= len(text):
                raise ValueError("PalmDOC data that refer to before their beginning")
            if distance >= length:
                text += text[-distance : len(text) - distance + length]
            else:  # what is copied overlaps what it makes
                text += (text[-distance:] * length)[:length]
        elif 1 <= byte <= 8:
            text += data[place : place + byte]
            place += byte
        else:
            text.append(byte)
    return bytes(text)


class HuffmanReader:
    """Unpacks records by the tables in a HUFF record and the CDIC records after it.

    Args:
        tables: these records.
        max_bytes: phrases may be made of phrases to any length; no record unpacks to more than this.

    Raises ValueError or struct.error for damaged tables.
    """

    def __init__(self, tables: list[bytes], max_bytes: int) -> None:
        if not tables or tables[0][:4] != b"HUFF":
            raise ValueError("no HUFF record")
        self.max_bytes = max_bytes
        by_first_byte, by_length = struct.unpack_from(">II", tables[0], 8)
        # By the first 8 bits of the input: length of the code (a lower bound without the bit 0x80), and its base.
        self.first_byte = struct.unpack_from(">256I", tables[0], by_first_byte)
        limits = struct.unpack_from(">64I", tables[0], by_length)
        # Of each length of codes: the smallest, and the base, the code that phrase 0 would have at that length.
        self.smallest = [0, *(limits[2 * n] << (_CODE_BITS - 1 - n) for n in range(_CODE_BITS))]
        self.base = [0, *(((limits[2 * n + 1] + 1) << (_CODE_BITS - 1 - n)) - 1 for n in range(_CODE_BITS))]
        self.phrases: list[bytes] = []
        self.literal: list[bool] = []
        for record in tables[1:]:
            self.add_phrases(record)

    def add_phrases(self, record: bytes) -> None:
        """Those of a CDIC record."""
        if record[:4] != b"CDIC":
            raise ValueError("no CDIC record")
        total, bits = struct.unpack_from(">II", record, 8)
        count = min(1 << min(bits, 16), total - len(self.phrases))
        for offset in struct.unpack_from(f">{count}H", record, 16):
            (length,) = struct.unpack_from(">H", record, 16 + offset)
            start = 18 + offset
            self.phrases.append(record[start : start + (length & ~_LITERAL)])
            self.literal.append(bool(length & _LITERAL))

    def unpack(self, data: bytes, depth: int = 0) -> bytes:
        """Raises ValueError for codes that mean nothing, Unreadable for more than `max_bytes`."""
        if depth > _MAX_DEPTH:
            raise ValueError("phrases that are made of themselves")
        parts, total = [], 0
        place, end = 0, len(data) * 8
        padded = data + bytes(5)
        while place < end:
            window = int.from_bytes(padded[place >> 3 : (place >> 3) + 5])
            length, index = self.decode(window >> (8 - (place & 7)) & 0xFFFFFFFF)
            place += length
            if place > end:  # the bits that fill the last byte
                break
            parts.append(self.phrase(index, depth))
            total += len(parts[-1])
            if total > self.max_bytes:
                raise Unreadable(TOO_LARGE, f"MOBI that unpacks to over {self.max_bytes} bytes")
        return b"".join(parts)

    def decode(self, code: int) -> tuple[int, int]:
        """Length of the first code in 32 bits, and the number of its phrase."""
        entry = self.first_byte[code >> 24]
        length = entry & 0x1F
        if not length:
            raise ValueError("a code that means nothing")
        if entry & 0x80:
            base = (((entry >> 8) + 1) << (_CODE_BITS - length)) - 1
        else:
            while length < _CODE_BITS and code < self.smallest[length]:
                length += 1
            base = self.base[length]
        return length, (base - code) >> (_CODE_BITS - length)

    def phrase(self, index: int, depth: int) -> bytes:
        """A phrase, unpacked once."""
        if not 0 <= index < len(self.phrases):
            raise ValueError("a code beyond the phrases")
        if not self.literal[index]:
            self.phrases[index] = self.unpack(self.phrases[index], depth + 1)
            self.literal[index] = True
        return self.phrases[index]
