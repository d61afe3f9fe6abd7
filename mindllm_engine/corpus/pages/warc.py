"""The web pages in a WARC file (a crawl: requests, responses and notes about them), by fastwarc.

Responses of status 200 with HTML in them become records; other responses are bad records with the reason. Requests,
metadata and revisits are no documents and not counted. What HTTP did to the body for its travel is undone here, since
fastwarc's own way of doing so loses the rest of the file where a body is not what its headers say.
"""

import io
import re
import zlib
from collections.abc import Iterator

from fastwarc.stream_io import BrotliReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from mindllm_engine.corpus.pages.records import DAMAGED_FILE, BadRecord, Record
from mindllm_engine.corpus.pages.unreadable import TOO_LARGE
from mindllm_engine.corpus.readers import decompressed
from mindllm_engine.errors import DataError

NOT_HTML = "not HTML"
HTTP_STATUS = "HTTP status"
DAMAGED_BODY = "damaged HTTP body"

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]{0,200}\r\n")
_READ_BYTES = 1 << 20


class _Stream:
    """The decompressed file, as fastwarc reads it. An end in the middle of a gzip member, which fastwarc passes over in
    silence, raises DataError here."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.chunk = memoryview(b"")
        self.position = 0
        self.tail = b""
        """The last bytes read."""

    def read(self, size: int = -1) -> bytes:
        while not self.chunk:
            chunk = next(self.chunks, None)
            if chunk is None:
                return b""
            self.chunk = memoryview(chunk)
        data, self.chunk = self.chunk[:size], self.chunk[size:]
        self.position += len(data)
        self.tail = (self.tail + data[-4:])[-4:]
        return bytes(data)

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        raise OSError("a stream")

    def close(self) -> None:
        """The file is its opener's to close."""


def warc_records(path: str, max_bytes: int) -> Iterator[Record | BadRecord]:
    """Those of a file; numbers count all records in it, of whatever type."""
    number = given = 0
    with open(path, "rb") as file:
        stream = _Stream(decompressed(path, file))
        try:
            for number, record in enumerate(ArchiveIterator(stream, stream_detect=False), 1):
                if record.record_type == WarcRecordType.response and record.is_http:
                    yield _page(number, record, max_bytes)
                    given = number
            if stream.tail != b"\r\n\r\n":  # which ends each record; fastwarc says nothing of half a header
                yield BadRecord(max(number, given + 1), DAMAGED_FILE, f"{path}: does not end with a record")
        except _CutOff:
            yield BadRecord(number, DAMAGED_FILE, f"{path}: ends in the middle of a record")
        except (DataError, OSError) as error:
            yield BadRecord(number + 1, DAMAGED_FILE, str(error))


class _CutOff(Exception):
    """The file ends before the record."""


def _page(number: int, record: WarcRecord, max_bytes: int) -> Record | BadRecord:
    if record.content_length > max_bytes:
        return BadRecord(number, TOO_LARGE, f"{record.content_length} bytes")
    body = record.reader.read(record.content_length)
    if len(body) < record.content_length:
        raise _CutOff
    headers = record.http_headers
    if headers.status_code != 200:
        return BadRecord(number, HTTP_STATUS, str(headers.status_code))
    try:
        if "chunked" in (headers.get("Transfer-Encoding") or "").lower():
            body = _without_chunks(body)
        body = _unpacked(body, (headers.get("Content-Encoding") or "").strip().lower(), max_bytes)
    except (zlib.error, OSError) as error:
        return BadRecord(number, DAMAGED_BODY, str(error))
    if len(body) > max_bytes:
        return BadRecord(number, TOO_LARGE, f"over {max_bytes} bytes, unpacked")
    content_type = (record.http_content_type or "").lower()
    if content_type not in _HTML_TYPES and (content_type or body.lstrip()[:1] != b"<"):
        return BadRecord(number, NOT_HTML, content_type)
    known = {"url": record.headers.get("WARC-Target-URI"), "record_id": record.record_id}
    metadata = {key: value.encode(errors="replace").decode() for key, value in known.items() if value}
    return Record(number, "html", body, metadata, record.http_charset)


def _without_chunks(body: bytes) -> bytes:
    """A body sent in chunks. Crawlers often store it whole and keep the header: then it is left alone."""
    parts, place = [], 0
    while match := _CHUNK_SIZE.match(body, place):
        size = int(match[1], 16)
        parts.append(body[match.end() : match.end() + size])
        place = match.end() + size + 2
        if not size:
            break
    return b"".join(parts) if parts else body


def _unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A compressed body, up to one byte more than `max_bytes`. One that is not compressed, whatever the header says, is
    left alone; one that is cut off yields what there is of it. Raises zlib.error, OSError."""
    if encoding in ("gzip", "x-gzip") and body[:2] == b"\x1f\x8b":
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(body, max_bytes + 1)
    if encoding == "deflate" and body and not body.lstrip().startswith(b"<"):
        # By the standard with zlib's header, by custom often without.
        bits = zlib.MAX_WBITS if body[0] & 0x0F == 8 else -zlib.MAX_WBITS
        return zlib.decompressobj(bits).decompress(body, max_bytes + 1)
    if encoding == "br" and not body.lstrip().startswith(b"<"):
        reader = BrotliReader(io.BytesIO(body))
        parts, left = [], max_bytes + 1
        while left and (part := reader.read(min(left, _READ_BYTES))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    return body
