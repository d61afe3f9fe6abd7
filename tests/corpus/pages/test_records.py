"""Raw records: every format gives what was written, and what is bad is told with its reason and place."""

import gzip
import zlib
from pathlib import Path

import orjson
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.corpus.pages.records import (
    SUFFIXES,
    BadRecord,
    ReadConfig,
    Record,
    bounded_lines,
    read_records,
)
from mindllm_engine.corpus.readers import expand_paths
from mindllm_engine.errors import ConfigError, DataError
from tests.corpus.pages.made_files import PAGE, epub, http_response, mobi, pdf, warc_record


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def all_of(path: str, **config: object) -> list[Record | BadRecord]:
    return list(read_records(path, ReadConfig(**config)))


def reasons(found: list[Record | BadRecord]) -> list[tuple[int, str]]:
    """Number, and data of what is good, reason of what is bad."""
    return [(each.number, each.reason if isinstance(each, BadRecord) else str(each.data)) for each in found]


# -- JSON lines ---

LINES = (
    b'\xef\xbb\xbf{"text": "one", "url": "http://a.example/", "id": 7, "other": NaN}\n'
    b"\n"
    b'{"text": 5}\n{"no": "text"}\n[1]\n{"text": "cut\n{"text": "\\ud800"}\n{"text": "\xff"}\n'
    b'{"text": "a\\u0000b", "url": "\\ud800", "id": null}\r\n{"text": "last"}'
)
EXPECTED = [
    (1, "one"),
    (3, "text is not a string"),
    (4, "no such field"),
    (5, "not a JSON object"),
    (6, "malformed JSON"),
    (7, "lone surrogate in the text"),
    (8, "invalid UTF-8"),
    (9, "a\0b"),
    (10, "last"),
]
PACKERS = {
    ".jsonl": bytes,
    ".json.gz": gzip.compress,
    ".jsonl.gz": lambda data: b"".join(gzip.compress(data[i : i + 30]) for i in range(0, len(data), 30)),
    ".jsonl.zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_json_lines_with_all_kinds_of_faults(tmp_path: Path, suffix: str) -> None:
    found = all_of(written(tmp_path / f"a{suffix}", PACKERS[suffix](LINES)))
    assert reasons(found) == EXPECTED
    good = [each for each in found if isinstance(each, Record)]
    assert [each.metadata for each in good] == [{"url": "http://a.example/", "record_id": "7"}, {"url": "?"}, {}]
    assert {each.kind for each in good} == {"text"}


def test_html_in_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", orjson.dumps({"html": PAGE, "text": "no"}) + b'\n{"text": "no"}\n')
    found = all_of(path, html_field="html")
    assert found == [Record(1, "html", PAGE), BadRecord(2, "no such field", "field 'html'")]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("fault", ["cut", "changed"])
def test_a_compressed_file_gives_what_comes_before_the_fault(tmp_path: Path, suffix: str, fault: str) -> None:
    lines = [orjson.dumps({"text": f"{number} {zlib.crc32(bytes([number % 256])):x}" * 9}) for number in range(5000)]
    packed = bytearray(
        PACKERS[suffix](b"\n".join(lines)) if suffix != ".jsonl.gz" else gzip.compress(b"\n".join(lines))
    )
    if fault == "cut":
        del packed[len(packed) * 2 // 3 :]
    else:
        packed[len(packed) * 2 // 3] ^= 0xFF
        packed[len(packed) * 2 // 3 + 1] ^= 0xFF
    *good, bad = all_of(written(tmp_path / f"a{suffix}", bytes(packed)))
    assert isinstance(bad, BadRecord)
    assert bad.reason == "file damaged or cut off"
    assert bad.number == len(good) + 1
    whole = [each for each in good if isinstance(each, Record)]
    assert len(whole) > 1000
    assert [orjson.dumps({"text": each.data}) for each in whole[:1000]] == lines[:1000]


@given(st.lists(st.binary(max_size=12)), st.integers(1, 9), st.integers(0, 9))
def test_lines_do_not_depend_on_how_the_file_is_cut(chunks: list[bytes], size: int, max_bytes: int) -> None:
    data = b"".join(chunks).replace(b"\r", b"\n")
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert list(bounded_lines(iter(pieces), max_bytes)) == [x if len(x) <= max_bytes else None for x in expected]


def test_a_line_of_a_gigabyte_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    packer = zlib.compressobj(1, wbits=31)
    with open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(packer.compress(b'{"text": "before"}\n{"text": "'))
        for _ in range(64):
            file.write(packer.compress(b"word " * ((16 << 20) // 5)))
        file.write(packer.compress(b'"}\n{"text": "after"}\n') + packer.flush())
    before = psutil.Process().memory_info().rss
    peak = before
    found = []
    for each in read_records(str(tmp_path / "a.jsonl.gz"), ReadConfig(max_bytes=32 << 20)):
        peak = max(peak, psutil.Process().memory_info().rss)
        found.append(each)
    assert reasons(found) == [(1, "before"), (2, "too large"), (3, "after")]
    assert peak - before < 128 << 20


# -- Parquet ---


def test_parquet(tmp_path: Path) -> None:
    texts = [b"one", None, b"\xff\xfe", "四".encode(), b"x" * 200]
    column = pa.array(texts, pa.binary()).view(pa.string())
    table = pa.table({"text": column, "url": ["http://a.example/", None, "u", "v", "w"], "n": range(5)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = all_of(str(tmp_path / "a.parquet"), max_bytes=100)
    expected = [(1, "one"), (2, "text is not a string"), (3, "invalid UTF-8"), (4, "四"), (5, "too large")]
    assert reasons(found) == expected
    assert isinstance(found[3], Record)
    assert found[3].metadata == {"url": "v"}


@pytest.mark.parametrize("dtype", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_html_in_parquet_of_any_type_of_string(tmp_path: Path, dtype: pa.DataType) -> None:
    pq.write_table(pa.table({"page": pa.array([PAGE, None, PAGE], pa.string()).cast(dtype)}), tmp_path / "a.parquet")
    first, empty, last = all_of(str(tmp_path / "a.parquet"), html_field="page")
    assert (first, last) == (Record(1, "html", PAGE.encode()), Record(3, "html", PAGE.encode()))
    assert empty == BadRecord(2, "text is not a string", "column 'page'")


def test_parquet_that_is_damaged_or_lacks_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"] * 1000, "n": range(1000)}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    cut = all_of(written(tmp_path / "b.parquet", data[: len(data) // 2]))
    assert reasons(cut) == [(1, "file damaged or cut off")]
    with pytest.raises(DataError, match="has no column 'body'; its columns are text, n"):
        all_of(str(tmp_path / "a.parquet"), text_field="body")
    with pytest.raises(DataError, match="holds int64, not strings"):
        all_of(str(tmp_path / "a.parquet"), text_field="n")


# -- WARC ---

CRAWL = [
    warc_record(b"software: test\r\n", kind="warcinfo"),
    warc_record(b"GET / HTTP/1.1\r\n\r\n", kind="request"),
    warc_record(http_response(PAGE.encode(), "text/html; charset=UTF-8"), "http://a.example/1"),
    warc_record(http_response(b"\x89PNG", "image/png")),
    warc_record(http_response(b"gone", status="404 Not Found")),
    warc_record(http_response(gzip.compress(PAGE.encode()), headers="Content-Encoding: gzip\r\n")),
    warc_record(http_response(PAGE.encode(), headers="Content-Encoding: gzip\r\n")),
    warc_record(http_response(b"5;x=y\r\n<p>ab\r\n3\r\ncde\r\n0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n")),
    warc_record(http_response(PAGE.encode(), headers="Transfer-Encoding: chunked\r\n")),
    warc_record(http_response(zlib.compress(PAGE.encode()), headers="Content-Encoding: deflate\r\n")),
    warc_record(http_response(zlib.compress(PAGE.encode())[2:-4], headers="Content-Encoding: deflate\r\n")),
    warc_record(http_response(b"\x1f\x8b\x08 no gzip", headers="Content-Encoding: gzip\r\n")),
    warc_record(http_response(gzip.compress(bytes(64 << 20)), headers="Content-Encoding: gzip\r\n")),
    warc_record(http_response(b"<p>" + bytes(2 << 20))),
    warc_record(b"no HTTP at all"),
    warc_record(http_response(b"<html>sniffed", "")),
    warc_record(http_response("<p>今天".encode("gb18030"), "text/html; charset=gb2312")),
]
CRAWLED = [
    (3, PAGE),
    (4, "not HTML"),
    (5, "HTTP status"),
    (6, PAGE),
    (7, PAGE),
    (8, "<p>abcde"),
    (9, PAGE),
    (10, PAGE),
    (11, PAGE),
    (12, "damaged HTTP body"),
    (13, "too large"),
    (14, "too large"),
    (15, "HTTP status"),
    (16, "<html>sniffed"),
    (17, "<p>今天"),
]


def crawled(found: list[Record | BadRecord]) -> list[tuple[int, str]]:
    return [
        (each.number, each.reason if isinstance(each, BadRecord) else bytes(each.data).decode(each.charset or "utf-8"))
        for each in found
    ]


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz", ".warc.zst"])
def test_pages_of_a_crawl(tmp_path: Path, suffix: str) -> None:
    pack = {".warc": bytes, ".warc.gz": gzip.compress, ".warc.zst": zstandard.compress}[suffix]
    path = written(tmp_path / f"a{suffix}", b"".join(map(pack, CRAWL)))
    found = all_of(path, max_bytes=1 << 20)
    assert crawled(found) == CRAWLED
    assert isinstance(found[0], Record)
    assert found[0].metadata == {"url": "http://a.example/1", "record_id": "<urn:uuid:http://a.example/1>"}


@pytest.mark.parametrize("member", ["each record", "all records"])
def test_a_crawl_cut_anywhere_gives_what_comes_before(tmp_path: Path, member: str) -> None:
    crawl = [CRAWL[2], CRAWL[4], CRAWL[2]]
    whole = b"".join(map(gzip.compress, crawl)) if member == "each record" else gzip.compress(b"".join(crawl))
    ends = (
        {len(whole)} if member == "all records" else {len(b"".join(map(gzip.compress, crawl[:n]))) for n in (1, 2, 3)}
    )
    expected = [PAGE, "HTTP status", PAGE]
    for end in range(1, len(whole) + 1):
        found = crawled(all_of(written(tmp_path / "a.warc.gz", whole[:end])))
        good = [each for each in found if each[1] != "file damaged or cut off"]
        assert [text for _, text in good] == expected[: len(good)]
        assert len(found) - len(good) == (end not in ends), end
        assert found == sorted(found, key=lambda each: each[0])


def test_a_plain_crawl_cut_within_a_record(tmp_path: Path) -> None:
    data = CRAWL[2] + CRAWL[2]
    for end in (len(data) - 100, len(data) - len(PAGE) - 10, len(CRAWL[2]) + 40):
        found = crawled(all_of(written(tmp_path / "a.warc", data[:end])))
        assert found == [(1, PAGE), (2, "file damaged or cut off")]


def test_a_crawl_with_garbage_in_it(tmp_path: Path) -> None:
    found = crawled(all_of(written(tmp_path / "a.warc", CRAWL[2] + b"garbage\r\n" * 9 + CRAWL[2])))
    assert found == [(1, PAGE), (2, "file damaged or cut off")]


# -- Files that are one record ---


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("a.html", "html", PAGE.encode()),
        ("a.htm", "html", PAGE.encode()),
        ("a.txt", "text", "今天".encode("gb18030")),
        ("a.pdf", "pdf", pdf(["x"])),
        ("a.epub", "epub", epub({"a": "x"}, ["a"])),
        ("a.mobi", "mobi", mobi([b"x"])),
        ("a.azw3", "mobi", mobi([b"x"])),
    ],
)
def test_a_file_that_is_one_record(tmp_path: Path, name: str, kind: str, data: bytes) -> None:
    path = written(tmp_path / name, data)
    assert all_of(path) == [Record(1, kind, data)]  # type: ignore[arg-type]
    assert reasons(all_of(path, max_bytes=len(data) - 1)) == [(1, "too large")]
    assert expand_paths(path, SUFFIXES) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_one_bad_record(tmp_path: Path, suffix: str) -> None:
    assert reasons(all_of(written(tmp_path / f"a{suffix}", b""))) == [(1, "empty")]


def test_a_file_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    before = psutil.Process().memory_info().rss
    assert reasons(all_of(str(path))) == [(1, "too large")]
    assert psutil.Process().memory_info().rss - before < 16 << 20


def test_mistakes_of_the_user_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.doc: unknown kind of file; known are \.jsonl"):
        all_of(written(tmp_path / "a.doc", b"x"))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        all_of(str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="max_bytes is 0"):
        all_of(written(tmp_path / "a.txt", b"x"), max_bytes=0)
