"""The raw records of a file of any format, as a stream: what holds text, undecoded and unparsed, and what is unusable.

    .jsonl .json (.gz, .zst)   a record a line, with a text or the HTML of a page
    .parquet                   a record a row, likewise
    .warc (.gz, .zst)          web pages as crawled (`warc.py`)
    .html .htm                 one page
    .txt                       one text
    .pdf .epub .mobi .azw3     one book

Whatever a file holds, reading goes on: a bad record is handed on with its reason, in its place. A file that is damaged
or cut off yields what comes before, and one bad record. Memory is bounded by `max_bytes`, not by the file, but for
Parquet, whose values are decompressed whole: some three times the largest, which is then passed over.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from mindllm_engine.corpus.pages.unreadable import TOO_LARGE
from mindllm_engine.corpus.readers import (
    INVALID_UTF8,
    NOT_A_STRING,
    RecordError,
    check_suffix,
    decompressed,
    load_record,
    text_of_record,
    without_byte_order_mark,
)
from mindllm_engine.errors import ConfigError, DataError

Kind = Literal["text", "html", "pdf", "epub", "mobi"]

DAMAGED_FILE = "file damaged or cut off"
EMPTY = "empty"

_JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
_WARC_SUFFIXES = (".warc", ".warc.gz", ".warc.zst")
_SINGLE: dict[str, Kind] = {
    ".html": "html",
    ".htm": "html",
    ".txt": "text",
    ".pdf": "pdf",
    ".epub": "epub",
    ".mobi": "mobi",
    ".azw3": "mobi",
}
SUFFIXES = (*_JSON_SUFFIXES, *_WARC_SUFFIXES, ".parquet", *_SINGLE)
"""Of the files that can be read."""


@dataclass(frozen=True)
class Record:
    """Something that should have text in it.

    Attributes:
        number: its place in the file, from 1: line, row, WARC record.
        data: a string can be encoded as UTF-8; bytes have whatever encoding.
        metadata: `url` and `record_id`, where known.
        charset: of bytes, where the HTTP header tells.
    """

    number: int
    kind: Kind
    data: str | bytes
    metadata: dict[str, Any] = field(default_factory=dict)
    charset: str | None = None


@dataclass(frozen=True)
class BadRecord:
    """Something without text.

    Attributes:
        reason: a few fixed words.
        detail: what was found here.
    """

    number: int
    reason: str
    detail: str = ""


@dataclass
class ReadConfig:
    """Where in the records of a source the text lies."""

    text_field: str = "text"
    """Of JSON lines and Parquet: field or column of the text."""
    html_field: str | None = None
    """Field or column of a page's HTML; where it is given, text_field is not read."""
    url_field: str = "url"
    """Field or column of the address, where there is one."""
    id_field: str = "id"
    """Field or column of the record's own name (`record_id` in what is written), where there is one."""
    max_bytes: int = 128 << 20
    """A larger record (decompressed) is not read."""

    def validate(self) -> None:
        """Raises ConfigError naming the first impossible value."""
        if self.max_bytes < 1:
            raise ConfigError(f"read.max_bytes is {self.max_bytes}; it must be positive")


def read_records(path: str, config: ReadConfig) -> Iterator[Record | BadRecord]:
    """Those of a file, in order.

    Raises DataError for a file that is missing or cannot be opened, has an unknown suffix, or (Parquet) lacks the
    column; ConfigError for an impossible value.
    """
    config.validate()
    check_suffix(path, SUFFIXES)
    try:
        if not os.stat(path).st_size:
            yield BadRecord(1, EMPTY, "a file of 0 bytes")
        elif path.endswith(_JSON_SUFFIXES):
            yield from _json_records(path, config)
        elif path.endswith(".parquet"):
            yield from _parquet_records(path, config)
        elif path.endswith(_WARC_SUFFIXES):
            from mindllm_engine.corpus.pages.warc import warc_records

            yield from warc_records(path, config.max_bytes)
        else:
            yield _single_record(path, config.max_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


# -- A file that is one record ---


def _single_record(path: str, max_bytes: int) -> Record | BadRecord:
    size = os.stat(path).st_size
    if size > max_bytes:
        return BadRecord(1, TOO_LARGE, f"{size} bytes")
    with open(path, "rb") as file:
        return Record(1, _SINGLE[os.path.splitext(path)[1]], file.read())


# -- JSON lines ---


def _json_records(path: str, config: ReadConfig) -> Iterator[Record | BadRecord]:
    number = 0
    try:
        with open(path, "rb") as file:
            chunks = without_byte_order_mark(decompressed(path, file))
            for number, line in enumerate(bounded_lines(chunks, config.max_bytes), 1):
                if line is None:
                    yield BadRecord(number, TOO_LARGE, f"a line of over {config.max_bytes} bytes")
                elif line.strip():
                    yield _json_record(number, line, config)
    except DataError as error:
        yield BadRecord(number + 1, DAMAGED_FILE, str(error))


def bounded_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Lines without their ends; None in the place of one that is longer. What stands before an error is yielded if its
    line is complete."""
    waiting: list[bytes] = []  # the beginning of a line
    length = 0
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            length += end - start
            yield b"".join((*waiting, chunk[start:end])) if length <= max_bytes else None
            waiting, length, start = [], 0, end + 1
        length += len(chunk) - start
        if length <= max_bytes:
            waiting.append(chunk[start:])
        else:
            waiting = []
    if length:
        yield b"".join(waiting) if length <= max_bytes else None


def _json_record(number: int, line: bytes, config: ReadConfig) -> Record | BadRecord:
    wanted = config.html_field or config.text_field
    try:
        record = load_record(line)
        text = text_of_record(record, wanted)
    except RecordError as error:
        return BadRecord(number, str(error), f"field '{wanted}'")
    metadata = _metadata(record.get(config.url_field), record.get(config.id_field))
    return Record(number, "html" if config.html_field else "text", text, metadata)


def _metadata(url: Any, record_id: Any) -> dict[str, Any]:
    """What is known of a record, as strings that can be encoded."""
    known = {"url": url if isinstance(url, str) else None, "record_id": record_id}
    return {
        name: str(value).encode(errors="replace").decode()
        for name, value in known.items()
        if isinstance(value, str | int) and value != ""
    }


# -- Parquet ---

# Values read at a time, by the average that the file declares; a batch is at least one row.
_BATCH_BYTES = 4 << 20


def _parquet_records(path: str, config: ReadConfig) -> Iterator[Record | BadRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Without pre-buffering, pages are read as they are needed and not a row group at a time.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as parquet:
            columns = _columns(path, parquet.schema_arrow, config)
            groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
            declared = sum(group.total_byte_size for group in groups)
            rows = max(1, min(1024, _BATCH_BYTES * parquet.metadata.num_rows // max(1, declared)))
            for batch in parquet.iter_batches(rows, columns=list(dict.fromkeys(columns.values()))):
                for row in range(batch.num_rows):
                    number += 1
                    yield _parquet_record(number, batch, row, columns, config)
    except (pa.ArrowException, OSError) as error:
        yield BadRecord(number + 1, DAMAGED_FILE, (str(error).splitlines() or [type(error).__name__])[0])


def _columns(path: str, schema: Any, config: ReadConfig) -> dict[str, str]:
    """Names of the columns to read, by what they hold."""
    import pyarrow as pa

    wanted = config.html_field or config.text_field
    if wanted not in schema.names:
        raise DataError(f"{path}: has no column '{wanted}'; its columns are {', '.join(schema.names)}")
    dtype = schema.field(wanted).type
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    strings = pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)
    if not (strings or pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype)):
        raise DataError(f"{path}: column '{wanted}' holds {dtype}, not strings")
    optional = {"url": config.url_field, "record_id": config.id_field}
    return {"text": wanted} | {key: name for key, name in optional.items() if name in schema.names}


def _parquet_record(
    number: int, batch: Any, row: int, columns: dict[str, str], config: ReadConfig
) -> Record | BadRecord:
    def cell(what: str) -> Any:
        return batch.column(columns[what])[row] if what in columns else None

    scalar = cell("text")
    # As bytes, because Parquet does not promise that a string is valid UTF-8.
    data = scalar.as_buffer() if hasattr(scalar, "as_buffer") else scalar.value.as_buffer()
    if data is None:
        return BadRecord(number, NOT_A_STRING, f"column '{columns['text']}'")
    if data.size > config.max_bytes:
        return BadRecord(number, TOO_LARGE, f"{data.size} bytes")
    others = []
    for what in ("url", "record_id"):
        try:
            others.append(None if cell(what) is None else cell(what).as_py())
        except UnicodeDecodeError:
            others.append(None)
    if config.html_field:
        return Record(number, "html", data.to_pybytes(), _metadata(*others))
    try:
        return Record(number, "text", data.to_pybytes().decode(), _metadata(*others))
    except UnicodeDecodeError:
        return BadRecord(number, INVALID_UTF8, f"column '{columns['text']}'")
