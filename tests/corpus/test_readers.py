"""Readers: every format gives the same texts; bad records are counted with their place; damage is one clear line."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.corpus.readers import BadRecords, expand_paths, parse_batch, read_raw_batches, read_texts
from mindllm_engine.errors import DataError

TEXTS = ["first", "第二篇\n有换行", "  spaces  ", "", "emoji 😀\u2028 and \u0000 control", "x" * 5000]


def _lines(texts: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": text, "id": 1}) + b"\n" for text in texts)


def _write(path: Path, texts: list[str]) -> Path:
    data = _lines(texts)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(data))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=2)
    else:
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("batch_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz", "json.gz", "jsonl.zst", "json.zst", "parquet"])
def test_every_format_gives_the_same_texts(tmp_path: Path, suffix: str, batch_bytes: int) -> None:
    path = _write(tmp_path / f"a.{suffix}", TEXTS)
    batches = list(read_raw_batches(str(path), "text", batch_bytes))
    parsed = [parse_batch(batch) for batch in batches]
    assert [text for texts, _ in parsed for text in texts] == TEXTS
    assert not any(bad.total for _, bad in parsed)
    assert batches[0].first_line == 1
    assert 0 < batches[-1].bytes_read <= path.stat().st_size


def test_oddities_of_files_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}\n{"x": NaN, "text": "c"}\n{"text": "d"}')
    bad = BadRecords()
    assert list(read_texts([str(path)], bad_records=bad)) == ["a", "b", "c", "d"]
    assert bad.total == 0


def test_concatenated_members_and_padding_are_read(tmp_path: Path) -> None:
    halves = _lines(["a"]), _lines(["b"])
    gz = tmp_path / "a.jsonl.gz"
    gz.write_bytes(gzip.compress(halves[0]) + bytes(700) + gzip.compress(halves[1]) + bytes(512))
    zst = tmp_path / "a.jsonl.zst"
    zst.write_bytes(zstandard.compress(halves[0]) + zstandard.compress(halves[1]))
    assert list(read_texts([str(gz)])) == ["a", "b"]
    assert list(read_texts([str(zst)])) == ["a", "b"]


BAD_LINES = {
    b'{"text": "cut': "malformed JSON",
    b'{"text": "\xff\xfe"}': "invalid UTF-8",
    b'["text"]': "not a JSON object",
    b'{"body": "x"}': "no such field",
    b'{"text": 7}': "text is not a string",
    b'{"text": null}': "text is not a string",
    b'{"text": "\\ud83d alone"}': "lone surrogate in the text",
    b"[" * 100_000: "malformed JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20].decode("latin-1"))
def test_a_bad_record_is_counted_or_fatal(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}\n' + line + b"\n")
    bad = BadRecords()
    assert list(read_texts([str(path)], bad_records=bad)) == ["before", "after"]
    assert bad.counts == {BAD_LINES[line]: 2}
    assert bad.first == {BAD_LINES[line]: f"{path}:3"}
    with pytest.raises(DataError, match=re.escape(f"{path}:3: {BAD_LINES[line]}")):
        list(read_texts([str(path)], on_bad_record="error"))


def test_line_numbers_hold_across_batches(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(_lines(TEXTS * 50) + b"{\n")
    bad = BadRecords()
    for batch in read_raw_batches(str(path), "text", batch_bytes=1000):
        bad.merge(parse_batch(batch)[1])
    assert bad.first == {"malformed JSON": f"{path}:{len(TEXTS) * 50 + 1}"}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.integers(1, 200))
def test_any_text_survives_json_lines(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], batch_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl.zst"
    _write(path, texts)
    batches = read_raw_batches(str(path), "text", batch_bytes)
    assert [text for batch in batches for text in parse_batch(batch)[0]] == texts


def test_parquet_types_and_bad_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    columns = {
        "plain": pa.array(["a", None, "c"]),
        "large": pa.array(["a", "b", "c"], pa.large_string()),
        "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
        "invalid": pa.concat_arrays([pa.array(["a"]), invalid, pa.array(["c"])]),
        "number": pa.array([1, 2, 3]),
    }
    pq.write_table(pa.table(columns), path)
    bad = BadRecords()
    assert list(read_texts([str(path)], "plain", bad_records=bad)) == ["a", "c"]
    assert list(read_texts([str(path)], "large")) == ["a", "b", "c"]
    assert list(read_texts([str(path)], "dictionary")) == ["a", "b", "a"]
    assert list(read_texts([str(path)], "invalid", bad_records=bad)) == ["a", "c"]
    assert bad.first == {"text is not a string": f"{path}:2", "invalid UTF-8": f"{path}:2"}
    with pytest.raises(DataError, match="column 'number' holds int64, not strings"):
        list(read_texts([str(path)], "number"))
    with pytest.raises(DataError, match="no column 'text'; its columns are plain, large"):
        list(read_texts([str(path)]))


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


LONG = [f"{i} text of some length" for i in range(2000)]
DAMAGED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "suffix": ("a.txt", lambda: b"x", "unknown kind of file"),
    "empty": ("a.jsonl", lambda: b"", "is empty"),
    "empty gzip file": ("a.jsonl.gz", lambda: b"", "is empty"),
    "nothing inside gzip": ("a.jsonl.gz", lambda: gzip.compress(b""), "is empty"),
    "truncated gzip": ("a.jsonl.gz", lambda: _cut(gzip.compress(_lines(LONG))), "truncated"),
    "truncated gzip trailer": ("a.jsonl.gz", lambda: gzip.compress(_lines(LONG))[:-4], "truncated"),
    "damaged gzip": ("a.jsonl.gz", lambda: gzip.compress(_lines(LONG))[:-8] + bytes(range(8)), "damaged"),
    "no gzip": ("a.jsonl.gz", lambda: _lines(LONG), "no gzip file"),
    "truncated zstd": ("a.jsonl.zst", lambda: _cut(zstandard.compress(_lines(LONG))), "truncated"),
    "no zstd": ("a.jsonl.zst", lambda: _lines(LONG), "no Zstandard file"),
    "empty parquet": ("a.parquet", lambda: b"", "is empty"),
    "no parquet": ("a.parquet", lambda: _lines(LONG), "no Parquet file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line_of_error(tmp_path: Path, case: str) -> None:
    name, content, message = DAMAGED[case]
    path = tmp_path / name
    path.write_bytes(content())
    with pytest.raises(DataError, match=message) as caught:
        list(read_texts([str(path)]))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        list(read_texts([str(tmp_path / "none.jsonl")]))
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match="folder"):
        list(read_texts([str(tmp_path / "folder.parquet")]))


def test_expand_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl", "[x].jsonl", "c.txt"):
        _write(tmp_path / name, ["t"])
    monkeypatch.setenv("TEXT_FOLDER", str(tmp_path))
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    assert expand_paths("$TEXT_FOLDER/[ab].jsonl") == [a, b]
    assert expand_paths([b, "${TEXT_FOLDER}/?.jsonl"]) == [b, a]
    assert expand_paths(str(tmp_path / "[x].jsonl")) == [str(tmp_path / "[x].jsonl")]
    with pytest.raises(DataError, match="no file matches"):
        expand_paths(str(tmp_path / "*.parquet"))
    with pytest.raises(DataError, match="unknown kind of file"):
        expand_paths(str(tmp_path / "c.*"))


def test_no_input_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no input files are named"):
        expand_paths([])
