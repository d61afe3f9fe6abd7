"""Text out of JSON lines (plain, gzip, Zstandard) and Parquet files, as a stream.

Reading has two layers. `read_raw_batches` decompresses a file and cuts it into batches of whole records without
decoding them, fast enough for one process to feed many. `parse_batch` turns one batch into texts; worker processes run
it together with the encoding (mindllm_engine/corpus/tokenize.py). `read_texts` is both in one process.

A bad record never stops a run by default: it is counted under a reason, with the place of the first one.
"""

import glob
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

import orjson
import zstandard

from mindllm_engine.errors import DataError

OnBadRecord = Literal["skip", "error"]

BATCH_BYTES = 1 << 20  # of decompressed text: some 25 ms of encoding, so a batch is worth handing to another process
READ_BYTES = 1 << 18
COMPRESSED_BYTES = 1 << 12  # decompressed at a time: 4 KiB of Zstandard may stand for 128 MiB

MALFORMED_JSON = "malformed JSON"
INVALID_UTF8 = "invalid UTF-8"
NOT_AN_OBJECT = "not a JSON object"
MISSING_FIELD = "no such field"
NOT_A_STRING = "text is not a string"
LONE_SURROGATE = "lone surrogate in the text"


@dataclass(frozen=True)
class LineBatch:
    """Whole lines of a JSON lines file, undecoded."""

    path: str
    first_line: int
    """Number of the first line, from 1."""
    data: bytes
    bytes_read: int
    """How far the file had been read on disk (compressed bytes), for progress."""


@dataclass(frozen=True)
class RowBatch:
    """Consecutive rows of one Parquet column, as an Arrow IPC stream (cheap to hand to another process)."""

    path: str
    first_line: int
    """Number of the first row, from 1."""
    data: bytes
    bytes_read: int
    """The file's size times the share of its rows read, for progress."""


RawBatch = LineBatch | RowBatch


@dataclass
class BadRecords:
    """Records that gave no text, counted by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    """Where each reason was first met, as `file:line`."""

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def merge(self, later: "BadRecords") -> None:
        """Add the counts of records that come after these in the input."""
        for reason, count in later.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, later.first[reason])

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def summary(self) -> str:
        """One line: `3 malformed JSON (first a.jsonl:17), 1 invalid UTF-8 (first b.jsonl:2)`."""
        return ", ".join(f"{count:,} {reason} (first {self.first[reason]})" for reason, count in self.counts.items())


def expand_paths(patterns: str | Iterable[str], suffixes: Iterable[str] | None = None) -> list[str]:
    """The files that glob patterns name, sorted within each pattern, each file once.

    `~` and environment variables are expanded. Raises DataError for a pattern that matches nothing, and for a file
    whose suffix has no reader (is not among `suffixes`), so that a run of hours does not end on its last file.
    """
    paths: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = os.path.expanduser(os.path.expandvars(pattern))
        # A file whose name holds a glob character is itself first of all.
        found = [expanded] if os.path.isfile(expanded) else sorted(filter(os.path.isfile, glob.glob(expanded)))
        if not found:
            raise DataError(f"no file matches {pattern}" + ("" if expanded == pattern else f" ({expanded})"))
        paths.update(dict.fromkeys(found))
    if not paths:
        raise DataError("no input files are named; name one at least")
    for path in paths:
        check_suffix(path, suffixes or _READERS)
    return list(paths)


def check_suffix(path: str, suffixes: Iterable[str]) -> None:
    """Raises DataError for a path that ends in none of them."""
    known = tuple(suffixes)
    if not path.endswith(known):
        raise DataError(f"{path}: unknown kind of file; known are {', '.join(known)}")


def read_raw_batches(path: str, text_field: str = "text", batch_bytes: int = BATCH_BYTES) -> Iterator[RawBatch]:
    """Cut a file into batches of about `batch_bytes` decompressed bytes, in order, records undecoded.

    Raises DataError if the suffix is unknown, or the file is missing, empty, truncated or damaged, or (Parquet) has no
    column of strings called `text_field`.
    """
    reader = _reader_for(path)
    empty = True
    try:
        for batch in reader(path, text_field, batch_bytes):
            empty = False
            yield batch
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise DataError(f"{path}: is empty")


def parse_batch(
    batch: RawBatch, text_field: str = "text", on_bad_record: OnBadRecord = "skip"
) -> tuple[list[str], BadRecords]:
    """Decode the records of one batch and take their text, in order. Blank lines are no records.

    Every text that is returned can be encoded as UTF-8. With `on_bad_record="error"` the first bad record raises
    DataError with its file and line; with "skip" it is counted.
    """
    texts: list[str] = []
    bad = BadRecords()
    decode = _text_of_line if isinstance(batch, LineBatch) else _text_of_cell
    for line_number, record in enumerate(_records(batch), batch.first_line):
        if isinstance(batch, LineBatch) and not record.strip():
            continue
        try:
            texts.append(decode(record, text_field))
        except RecordError as error:
            reason = str(error)
            if on_bad_record == "error":
                raise DataError(
                    f"{batch.path}:{line_number}: {reason} (field '{text_field}'); "
                    "mend the record, or skip such records with on_bad_record: skip"
                ) from None
            bad.add(reason, f"{batch.path}:{line_number}")
    return texts, bad


def read_texts(
    paths: Iterable[str],
    text_field: str = "text",
    on_bad_record: OnBadRecord = "skip",
    bad_records: BadRecords | None = None,
) -> Iterator[str]:
    """The texts of several files, in order. Bad records are added to `bad_records` where it is given."""
    for path in paths:
        for batch in read_raw_batches(path, text_field):
            texts, bad = parse_batch(batch, text_field, on_bad_record)
            if bad_records is not None:
                bad_records.merge(bad)
            yield from texts


# -- One record ---


class RecordError(Exception):
    """A record without a usable text; the message is the reason it is counted under."""


def _records(batch: RawBatch) -> list[Any]:
    if isinstance(batch, LineBatch):
        return batch.data.split(b"\n")
    import pyarrow as pa  # here, because a worker that reads JSON lines does without it

    with pa.ipc.open_stream(batch.data) as stream:
        return [cell for rows in stream for cell in rows.column(0).to_pylist()]


def _text_of_line(line: bytes, text_field: str) -> str:
    return text_of_record(load_record(line), text_field)


def load_record(line: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises RecordError."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = _loads_leniently(line)
    if not isinstance(record, dict):
        raise RecordError(NOT_AN_OBJECT)
    return record


def text_of_record(record: dict[str, Any], text_field: str) -> str:
    """A string that can be encoded as UTF-8. Raises RecordError."""
    if text_field not in record:
        raise RecordError(MISSING_FIELD)
    text = record[text_field]
    if not isinstance(text, str):
        raise RecordError(NOT_A_STRING)
    if not is_encodable(text):
        raise RecordError(LONE_SURROGATE)
    return text


def _loads_leniently(line: bytes) -> Any:
    """`json.dumps` writes NaN and lone surrogates, which orjson refuses; in other fields that is harmless."""
    try:
        line_text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(INVALID_UTF8) from None
    try:
        return json.loads(line_text)
    except (ValueError, RecursionError):
        raise RecordError(MALFORMED_JSON) from None


def is_encodable(text: str) -> bool:
    """Whether the text has no lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _text_of_cell(cell: bytes | None, text_field: str) -> str:
    if cell is None:
        raise RecordError(NOT_A_STRING)
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(INVALID_UTF8) from None


# -- JSON lines ---


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes) -> bytes: ...


def _read_json_lines(path: str, text_field: str, batch_bytes: int) -> Iterator[LineBatch]:
    first_line = 1
    waiting: list[bytes] = []  # the chunks of the batch to come
    waiting_bytes = 0
    with open(path, "rb") as file:
        for chunk in without_byte_order_mark(decompressed(path, file)):
            waiting.append(chunk)
            waiting_bytes += len(chunk)
            # Only the new chunk is searched, so a single line of gigabytes costs no quadratic time.
            end = chunk.rfind(b"\n") + 1 if waiting_bytes >= batch_bytes else 0
            if not end:
                continue
            waiting[-1] = chunk[:end]
            data = b"".join(waiting)
            waiting = [chunk[end:]]
            waiting_bytes = len(waiting[0])
            yield LineBatch(path, first_line, data, file.tell())
            first_line += data.count(b"\n")
        if waiting_bytes:
            yield LineBatch(path, first_line, b"".join(waiting), file.tell())


def without_byte_order_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes without the mark with which some programs begin UTF-8."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 3:
            break
    yield head.removeprefix(b"\xef\xbb\xbf")
    yield from chunks


def decompressed(path: str, file: BinaryIO) -> Iterator[bytes]:
    """The content of a plain, gzip or Zstandard file (by its suffix), in chunks of at most some 128 MiB.

    Raises DataError where it is damaged or cut off, after all that comes before.
    """
    if path.endswith(".gz"):
        # 16 added to the window size asks zlib for the gzip format.
        return _inflate(path, file, "gzip", lambda: zlib.decompressobj(16 + zlib.MAX_WBITS))
    if path.endswith(".zst"):
        # Files written with `zstd --long=31` need a window of 2 GiB.
        return _inflate(path, file, "Zstandard", zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj)
    return iter(lambda: file.read(READ_BYTES), b"")


def _inflate(path: str, file: BinaryIO, format_name: str, new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress any number of concatenated gzip members or Zstandard frames, and notice when the last is cut short."""
    decompressor: _Decompressor | None = None
    try:
        while compressed := file.read(COMPRESSED_BYTES):
            while compressed:
                if decompressor is None:
                    if format_name == "gzip":  # which may be padded with zeros between and after its members
                        compressed = compressed.lstrip(b"\0")
                        if not compressed:
                            break
                    decompressor = new_decompressor()
                if data := decompressor.decompress(compressed):
                    yield data
                compressed = decompressor.unused_data if decompressor.eof else b""
                if decompressor.eof:
                    decompressor = None
    except (zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: is damaged or no {format_name} file: {error}") from error
    if decompressor is not None:
        raise DataError(f"{path}: ends in the middle of its {format_name} data: the file is truncated")


# -- Parquet ---


def _read_parquet(path: str, text_field: str, batch_bytes: int) -> Iterator[RowBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = os.stat(path).st_size
    if not size:
        return
    try:
        with pq.ParquetFile(path) as parquet:
            _check_text_column(path, text_field, parquet.schema_arrow)
            rows = parquet.metadata.num_rows
            text_bytes = sum(
                parquet.metadata.row_group(i).total_byte_size for i in range(parquet.metadata.num_row_groups)
            )
            rows_a_batch = max(1, min(65536, batch_bytes * rows // max(1, text_bytes)))
            rows_read = 0
            for table in parquet.iter_batches(rows_a_batch, columns=[text_field]):
                column = table.column(0)
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                # As binary, because Parquet does not promise that a string is valid UTF-8.
                cells = pa.record_batch([column.cast(pa.large_binary())], names=["text"])
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, cells.schema) as stream:
                    stream.write_batch(cells)
                first_row = rows_read + 1
                rows_read += len(column)
                yield RowBatch(path, first_row, sink.getvalue().to_pybytes(), size * rows_read // rows)
    except pa.ArrowException as error:
        raise DataError(f"{path}: is damaged or no Parquet file: {str(error).splitlines()[0]}") from error


def _check_text_column(path: str, text_field: str, schema: Any) -> None:
    import pyarrow as pa

    if text_field not in schema.names:
        raise DataError(f"{path}: has no column '{text_field}'; its columns are {', '.join(schema.names)}")
    dtype = schema.field(text_field).type
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    if not (pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)):
        raise DataError(f"{path}: column '{text_field}' holds {dtype}, not strings")


_Reader = Callable[[str, str, int], Iterator[RawBatch]]
_JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
_READERS: dict[str, _Reader] = dict.fromkeys(_JSON_SUFFIXES, _read_json_lines) | {".parquet": _read_parquet}


def _reader_for(path: str) -> _Reader:
    check_suffix(path, _READERS)
    return next(reader for suffix, reader in _READERS.items() if path.endswith(suffix))
