"""Books and crawls made by hand, byte by byte: readers are tested against the formats and not against themselves."""

import io
import struct
import zipfile
from collections.abc import Sequence

PARAGRAPH = "The ferry left the harbour at dawn, and the gulls followed it far out to sea. Nobody on deck spoke. "
ARTICLE = "".join(f"<p>Day {number}. {PARAGRAPH * 3}</p>" for number in range(6))
PAGE = (
    "<html><head><title>Harbour</title><script>var hidden = 1;</script><style>p{color:red}</style></head><body>"
    "<nav><a href='/'>Home</a> <a href='/about'>About us</a></nav>"
    f"<article><h1>At the harbour</h1>{ARTICLE}</article><footer>Imprint and cookies</footer></body></html>"
)
ZH_SENTENCE = "今天早上港口起了大雾，渡船推迟了两个小时才离开码头，乘客们都在候船室里喝茶聊天。"
ZH_PARAGRAPHS = "".join(f"<p>第{number}天。{ZH_SENTENCE * 5}</p>" for number in range(4))
ZH_PAGE = f"<html><body><article><h1>港口</h1>{ZH_PARAGRAPHS}</article></body></html>"


def http_response(body: bytes, content_type: str = "text/html", status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{headers}\r\n".encode() + body


def warc_record(block: bytes, url: str = "http://a.example/", kind: str = "response") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:uuid:{url}>\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def pdf(pages: Sequence[str], more_trailer: str = "", more_objects: Sequence[bytes] = ()) -> bytes:
    """A PDF of one line of ASCII a page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects.append(f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, text in enumerate(pages):
        font = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 612 792]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {font} /Contents {5 + 2 * number} 0 R >>".encode())
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    objects += more_objects
    file, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R {more_trailer} >>\nstartxref\n{table}\n%%EOF\n"
    return bytes(file) + trailer.encode()


def encrypted_pdf(pages: Sequence[str]) -> bytes:
    """One whose password nobody knows: the hashes in it are arbitrary."""
    number = 4 + 2 * len(pages)
    encrypt = f"<< /Filter /Standard /V 1 /R 2 /O <{'ab' * 32}> /U <{'cd' * 32}> /P -44 >>".encode()
    return pdf(pages, f"/Encrypt {number} 0 R /ID [<{'01' * 16}> <{'01' * 16}>]", [encrypt])


CONTAINER = (
    '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
    '<rootfiles><rootfile full-path="OPS/package.opf" media-type="application/oebps-package+xml"/></rootfiles>'
    "</container>"
)


def epub(chapters: dict[str, str], spine: Sequence[str], more: dict[str, str] | None = None) -> bytes:
    """An EPUB of XHTML bodies by file name, read in the order of the spine."""
    items = "".join(
        f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"'
        f"{' properties=' + chr(34) + 'nav' + chr(34) if name == 'toc' else ''}/>"
        for name in chapters
    )
    order = "".join(f'<itemref idref="{name}"/>' for name in spine)
    package = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        f"<manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OPS/package.opf", package)
        for name, body in chapters.items():
            page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
            archive.writestr(f"OPS/{name}.xhtml", page)
        for name, text in (more or {}).items():
            archive.writestr(name, text)
    return file.getvalue()


def palm_database(records: Sequence[bytes], kind: bytes = b"BOOKMOBI") -> bytes:
    head = b"book".ljust(32, b"\0") + bytes(28) + kind + bytes(8) + struct.pack(">H", len(records))
    place, index = len(head) + 8 * len(records) + 2, b""
    for number, record in enumerate(records):
        index += struct.pack(">II", place, number)
        place += len(record)
    return head + index + b"\0\0" + b"".join(records)


def mobi(
    text_records: Sequence[bytes],
    tail: Sequence[bytes] = (),
    compression: int = 1,
    encryption: int = 0,
    trailing: int = 0,
    version: int = 6,
    flows: bool = False,
    codepage: int = 65001,
) -> bytes:
    """A MOBI of text records as they are (compressed or not) and what stands behind them: tables, or FDST."""
    after = 1 + len(text_records)
    first = bytearray(264)
    struct.pack_into(">HHIHHHH", first, 0, compression, 0, 0, len(text_records), 4096, encryption, 0)
    first[16:20] = b"MOBI"
    struct.pack_into(">5I", first, 20, 248, 2, codepage, 1, version)
    struct.pack_into(">II", first, 112, after, len(tail))
    struct.pack_into(">I", first, 192, after if flows else 0xFFFFFFFF)
    struct.pack_into(">H", first, 242, trailing)
    return palm_database([bytes(first), *text_records, *tail])


def palmdoc(data: bytes) -> bytes:
    """PalmDOC compression, simple: every kind of code, the longest repetition found within 2,047 bytes."""
    out, place = bytearray(), 0
    while place < len(data):
        distance, length = 0, 0
        for size in range(10, 2, -1):
            found = data.rfind(data[place : place + size], max(0, place - 2047), place + size - 1)
            if place + size <= len(data) and 0 <= found < place:
                distance, length = place - found, size
                break
        if length:
            out += struct.pack(">H", 0x8000 | distance << 3 | (length - 3))
            place += length
        elif data[place] == 0x20 and place + 1 < len(data) and 0x40 <= data[place + 1] < 0x80:
            out.append(data[place + 1] ^ 0x80)
            place += 2
        elif data[place] == 0 or 9 <= data[place] < 0x80:
            out.append(data[place])
            place += 1
        else:
            out += bytes([1, data[place]])
            place += 1
    return bytes(out)


def huffman(phrases: Sequence[bytes], literal: Sequence[bool], long_codes: int) -> tuple[bytes, list[bytes], list[str]]:
    """HUFF and CDIC records for some phrases, and the code of each as a string of bits.

    The last `long_codes` phrases (few) have codes of 10 bits, the others of 8. Codes count downwards from all ones.
    """
    short = len(phrases) - long_codes
    codes = [format(255 - number, "08b") for number in range(short)]
    first_long = (256 - short) * 4 - 1
    codes += [format(first_long - number, "010b") for number in range(long_codes)]
    by_first_byte = []
    for byte in range(256):
        if byte > 255 - short:
            by_first_byte.append(255 << 8 | 0x80 | 8)
        else:
            by_first_byte.append(9)  # no code of 8 bits: look at 9 and more
    limits = [[0, 0] for _ in range(32)]
    limits[7] = [256 - short, 255]
    limits[8] = [(first_long + 1) >> 1, (first_long + 1) >> 1]  # no codes of 9 bits: smaller ones are longer
    limits[9] = [first_long - long_codes + 1, first_long + short]  # phrases are numbered on across lengths
    huff = b"HUFF" + struct.pack(">III", 24, 24, 24 + 1024) + bytes(8)
    huff += struct.pack(">256I", *by_first_byte) + struct.pack(">64I", *(n for pair in limits for n in pair))
    bodies, offsets, place = b"", [], 2 * len(phrases)
    for phrase, plain in zip(phrases, literal, strict=True):
        offsets.append(place)
        bodies += struct.pack(">H", len(phrase) | (0x8000 if plain else 0)) + phrase
        place += 2 + len(phrase)
    cdic = b"CDIC" + struct.pack(">III", 16, len(phrases), 16) + struct.pack(f">{len(phrases)}H", *offsets) + bodies
    return huff, [cdic], codes


def packed_bits(bits: str) -> bytes:
    """Bits as bytes; the last is filled with zeros."""
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)
