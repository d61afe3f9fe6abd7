"""Token files that are damaged, do not match, or cannot be written: always one clear line, and nothing half-written."""

import contextlib
import errno
import os
import resource
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mindllm_engine._native as _native
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindllm_engine.data import token_file_builder
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from tests.data.token_file_cases import FACTS, assert_reads, build, contents

HEADER_BYTES = 34


# Damaged files


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def set_size(path: Path, change: int) -> None:
    os.truncate(path, path.stat().st_size + change)


# Documents of 3, 0 and 2 tokens, so lengths at 34, offsets at 46, document starts at 70.
DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no index": (lambda b, i: i.unlink(), r"a\.idx: missing; check the path"),
    "no data": (lambda b, i: b.unlink(), r"a\.bin: missing; check the path"),
    "a folder": (lambda b, i: (i.unlink(), i.mkdir()), r"a\.idx: not a regular file"),
    "empty index": (lambda b, i: os.truncate(i, 0), r"a\.idx: the index is empty"),
    "empty data": (lambda b, i: os.truncate(b, 0), r"a\.bin: the data is empty: 0 bytes, the index says 20"),
    "magic": (lambda b, i: put(i, 0, b"TNTIDX"), r"a\.idx: bad magic"),
    "version": (lambda b, i: put(i, 9, b"\2"), r"a\.idx: bad version 2"),
    "dtype code": (lambda b, i: put(i, 17, b"\x09"), r"a\.idx: dtype code 9 is unknown"),
    "dtype zero": (lambda b, i: put(i, 17, b"\0"), r"a\.idx: dtype code 0 is unknown"),
    "float code": (lambda b, i: put(i, 17, b"\7"), r"a\.idx: dtype code 7 means floats"),
    "truncated index": (lambda b, i: set_size(i, -1), r"a\.idx: the index is truncated"),
    "truncated header": (lambda b, i: os.truncate(i, 33), r"a\.idx: the index is truncated: 33 bytes"),
    "longer index": (lambda b, i: set_size(i, 3), r"a\.idx: the counts do not fit .* 3 bytes follow"),
    "huge sequences": (lambda b, i: put(i, 18, b"\xff" * 8), r"a\.idx: .*counts are wrong: 18446744073709551615 seq"),
    "overflowing counts": (lambda b, i: put(i, 18, struct.pack("<QQ", 2**62, 2**61 + 4)), r"counts are wrong"),
    "huge documents": (lambda b, i: put(i, 26, b"\xff" * 8), r"a\.idx: .*and 18446744073709551615 document starts"),
    "no starts": (lambda b, i: put(i, 26, b"\0" * 8), r"a\.idx: the index has no document starts"),
    "negative length": (lambda b, i: put(i, 34, struct.pack("<i", -3)), r"sequence 0 has a negative length, -3"),
    "other length": (lambda b, i: put(i, 34, b"\4"), r"offset of sequence 1 is 12, but the lengths before it give 16"),
    "negative offset": (lambda b, i: put(i, 46, struct.pack("<q", -4)), r"offset of sequence 0 is -4"),
    "misaligned offset": (lambda b, i: put(i, 54, b"\x0d"), r"offset of sequence 1 is 13, misaligned for int32"),
    "huge offset": (lambda b, i: put(i, 62, struct.pack("<q", 2**63 - 4)), r"offset of sequence 2 is 92233720368547"),
    "first document": (lambda b, i: put(i, 70, b"\1"), r"first document does not start at sequence 0"),
    "starts go back": (lambda b, i: put(i, 86, b"\0"), r"document 1 ends at sequence 0, which is before its start"),
    "starts too far": (lambda b, i: put(i, 86, b"\x09"), r"document 1 ends at sequence 9, .* or after the last of 3"),
    "starts end early": (lambda b, i: put(i, 94, b"\2"), r"documents end at sequence 2, but there are 3"),
    "shorter data": (lambda b, i: set_size(b, -4), r"a\.bin: shorter than its index says: 16 bytes, the index says 20"),
    "longer data": (lambda b, i: set_size(b, 4), r"a\.bin: longer than its index says: 24 bytes, the index says 20"),
    "misaligned data": (lambda b, i: set_size(b, -1), r"a\.bin: misaligned: not a whole number of int32 tokens: 19"),
}

# What a look at the ends of the index does not show. Documents are found without the lengths, so that reading is right
# for all that; the others are noticed where they are read.
LATE = {"negative length", "other length", "misaligned offset", "starts go back", "starts too far"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    build(tmp_path / "a", [np.array([1, 2, 3]), np.array([], int), np.array([4, 5])])
    return tmp_path / "a"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(small: Path, damage: str) -> None:
    inflict, message = DAMAGES[damage]
    inflict(Path(f"{small}.bin"), Path(f"{small}.idx"))
    # A foreign file: found by opening it.
    expected = FileNotFoundError if "missing" in message else ValueError
    with pytest.raises(expected, match=None if "missing" in message else message):
        _native.TokenFileReader(small)
    # Ours: found by opening it, or else by verifying it.
    if damage in LATE:
        file = TokenFile(small)
        with pytest.raises(DataError, match=message) as caught:
            file.verify()
    else:
        with pytest.raises(DataError, match=message) as caught:
            TokenFile(small)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what to do


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "misaligned offset",
            r"a\.idx: the index is damaged: document 1 starts at sequence 1 of 3, which .* byte 13 of",
        ),
        ("starts go back", r"a\.idx: the index is damaged: document 1 ends at token 0, before its start at 3"),
        ("starts too far", r"a\.idx: the index is damaged: document 2 starts at sequence 9 of 3"),
    ],
)
def test_late_damage_is_named_by_the_first_use(small: Path, damage: str, message: str) -> None:
    inflict, _ = DAMAGES[damage]
    inflict(Path(f"{small}.bin"), Path(f"{small}.idx"))
    file = TokenFile(small)
    for use in (lambda: file.lengths, lambda: file.document(1)):
        with pytest.raises(DataError, match=message):
            use()


@pytest.mark.parametrize("damage", ["negative length", "other length"])
def test_lengths_that_nothing_needs_do_no_harm(small: Path, damage: str) -> None:
    inflict, _ = DAMAGES[damage]
    inflict(Path(f"{small}.bin"), Path(f"{small}.idx"))
    file = TokenFile(small)
    assert [file.document(i).tolist() for i in range(3)] == [[1, 2, 3], [], [4, 5]]
    assert file.lengths.tolist() == [3, 0, 2]


@pytest.mark.parametrize("suffix", [".idx", ".bin", ".json"])
def test_truncation_at_every_byte(small: Path, suffix: str) -> None:
    path = Path(f"{small}{suffix}")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            TokenFile(small)
        if suffix != ".json":
            with pytest.raises(ValueError, match=r"a\."):
                _native.TokenFileReader(small)


def test_flipped_bits_of_the_index_are_noticed(small: Path) -> None:
    path = Path(f"{small}.idx")
    whole = path.read_bytes()
    checked_on_opening = HEADER_BYTES + 3 * (
        4 + 8
    )  # what follows are document starts, of which some are only plausible
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            foreign = _native.TokenFileReader(small)
            assert bit // 8 >= checked_on_opening
            assert [len(foreign.document(i)) for i in range(foreign.documents)] == foreign.lengths.tolist()
        try:
            file = TokenFile(small)
        except DataError:
            continue
        with contextlib.suppress(DataError):  # found by the first use
            assert [len(file.document(i)) for i in range(file.documents)] == file.lengths.tolist()
        with pytest.raises(DataError, match=r"a\.(idx|bin): "):
            file.verify()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_indices_never_crash_the_reader(tmp_path: Path, data: st.DataObject) -> None:
    number = st.one_of(st.integers(0, 6), st.integers(0, 2**64 - 1), st.sampled_from([2**61, 2**62, 2**63 - 1, 2**63]))
    header = struct.pack(
        "<9sQBQQ", b"MMIDIDX\0\0", 1, data.draw(st.integers(0, 9)), data.draw(number), data.draw(number)
    )
    (tmp_path / "a.idx").write_bytes(header + data.draw(st.binary(max_size=100)))
    (tmp_path / "a.bin").write_bytes(data.draw(st.binary(max_size=40)))
    with contextlib.suppress(ValueError):
        reader = _native.TokenFileReader(tmp_path / "a")
        assert sum(len(reader.document(i)) for i in range(reader.documents)) == reader.tokens
    read_whatever_can_be_read(tmp_path / "a")


def read_whatever_can_be_read(prefix: Path) -> None:
    """Open only the ends of an index and use it in every way: a ValueError, or something that holds together."""
    try:
        reader = _native.TokenFileReader(prefix, thorough=False)
    except ValueError:
        return
    stream = np.fromfile(f"{prefix}.bin", reader.dtype)
    assert reader.tokens == len(stream)
    np.testing.assert_array_equal(reader.read(0, reader.tokens), stream)
    for document in range(reader.documents):
        with contextlib.suppress(ValueError):
            start = reader.document_start(document)
            ids = reader.document(document)
            np.testing.assert_array_equal(ids, stream[start : start + len(ids)])
    for token in range(reader.tokens):
        with contextlib.suppress(ValueError):
            document = reader.document_of(token)
            assert reader.document_start(document) <= token < reader.document_start(document + 1)
    with contextlib.suppress(ValueError):
        assert sum(reader.lengths) == reader.tokens
        assert min(reader.lengths, default=0) >= 0
    with contextlib.suppress(ValueError):
        assert (reader.find_stray(5) is None) == bool(np.all((stream >= 0) & (stream < 5)))
    try:
        reader.check_index()
    except ValueError:
        return
    assert reader.lengths.tolist() == _native.TokenFileReader(prefix).lengths.tolist()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_indices_with_wild_entries_never_crash_the_reader(tmp_path: Path, data: st.DataObject) -> None:
    """Whole headers and ends, so that the index opens, and anything in the middle."""
    sequences, documents, tokens = (
        data.draw(st.integers(1, 6)),
        data.draw(st.integers(1, 6)),
        data.draw(st.integers(0, 9)),
    )
    wild = st.one_of(st.integers(-1, 12), st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**62, 2**63 - 4, -4]))
    offsets = [0, *data.draw(st.lists(wild, min_size=sequences - 1, max_size=sequences - 1))]
    last = data.draw(st.integers(0, tokens)) if sequences > 1 else tokens
    offsets[-1] = 4 * (tokens - last)
    lengths = [*data.draw(st.lists(st.integers(-2, 9), min_size=sequences - 1, max_size=sequences - 1)), last]
    starts = [0, *data.draw(st.lists(wild, min_size=documents - 1, max_size=documents - 1)), sequences]
    (tmp_path / "a.idx").write_bytes(
        struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, sequences, documents + 1)
        + np.array(lengths, np.int32).tobytes()
        + np.array([*offsets, *starts], np.int64).tobytes()
    )
    (tmp_path / "a.bin").write_bytes(np.arange(tokens, dtype=np.int32).tobytes())
    _native.TokenFileReader(tmp_path / "a", thorough=False)  # it opens
    read_whatever_can_be_read(tmp_path / "a")


def test_light_opening_looks_at_the_ends_only(tmp_path: Path) -> None:
    _native.write_index(tmp_path / "a.idx", "uint16", np.full(3_000_000, 7))
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(3_000_000 * 14)
    for offset in (HEADER_BYTES + 4 * 1_500_000, HEADER_BYTES + 12 * 1_500_000, HEADER_BYTES + 12 * 3_000_000 + 8 * 9):
        put(tmp_path / "a.idx", offset, b"\xff")
        reader = _native.TokenFileReader(tmp_path / "a", thorough=False)
        assert (reader.documents, reader.tokens) == (3_000_000, 21_000_000)
        with pytest.raises(ValueError, match=r"a\.idx: "):
            reader.check_index()
        with pytest.raises(ValueError, match=r"a\.idx: "):
            _native.TokenFileReader(tmp_path / "a")


def test_index_cut_short_while_open_is_an_error_of_its_check(small: Path) -> None:
    reader = _native.TokenFileReader(small, thorough=False)
    set_size(Path(f"{small}.idx"), -20)
    with pytest.raises(ValueError, match=r"a\.idx: cut short while it was read: it ended at byte"):
        reader.check_index()


def test_index_changed_while_open_stays_inside_the_map(small: Path) -> None:
    reader = _native.TokenFileReader(small)
    path = Path(f"{small}.idx")
    for offset, value in [(78, 2**62), (78, -1), (54, 2**62), (54, -(2**62))]:
        whole = path.read_bytes()
        put(path, offset, struct.pack("<q", value))
        for read in (lambda: reader.document(0), lambda: reader.document(1)):
            with pytest.raises((ValueError, IndexError)):
                read()
        put(path, 0, whole)
    assert reader.document(0).tolist() == [1, 2, 3]


def test_damaged_data_is_found_by_its_checksum(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file_builder, "CHUNK_BYTES", 8)
    build(small, [np.array([1, 2, 3]), np.array([4, 5])])
    file = TokenFile(small)
    assert len(file.manifest.chunks) == 3
    file.verify()
    put(Path(f"{small}.bin"), 13, b"\1")
    with pytest.raises(DataError, match=r"a\.bin: damaged: chunk 1, from byte 8 to 15, with documents 0 to 1, has"):
        TokenFile(small).verify()


# The manifest


def test_manifest_round_trip(small: Path) -> None:
    manifest = Manifest.load(small)
    assert (
        asdict(manifest).items() >= (FACTS | {"documents": 3, "tokens": 5, "text_bytes": 21, "dtype": "int32"}).items()
    )
    manifest.save(small)
    assert Manifest.load(small) == manifest
    assert sorted(p.name for p in small.parent.iterdir()) == ["a.bin", "a.idx", "a.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "no tokens"),
        ({"colour": 3}, "unknown colour"),
        ({"two\nlines": 3}, r"unknown two\\nlines; restore"),
        ({"x" * 5000: 3}, "unknown x{192}; restore"),
        ({"tokens": "5"}, "tokens must be int"),
        ({"documents": True}, "documents must be int"),
        ({"chunks": [3]}, "chunks must be list"),
        ({"documents": -1}, "negative"),
        ({"vocab_size": 0}, "not a positive"),
        ({"chunk_bytes": 0}, "not a positive"),
        ({"dtype": "float32"}, "no type of token ids"),
        ({"chunk_bytes": 6}, "chunk_bytes is 6, no whole number of int32 ids"),
        ({"name": "two\nlines"}, "name holds a character that cannot be printed"),
        ({"tokenizer_hash": "\u2028"}, "tokenizer_hash holds a character that cannot be printed"),
        ({"vocab_size": 2**63}, "vocab_size is 9223372036854775808, more ids than any type has"),
        ({"chunks": ["5eed"]}, "'5eed' is no checksum of 16 hexadecimal digits"),
        ({"index_checksum": "\n" * 16}, r"'(\\n){16}' is no checksum of 16 hexadecimal digits"),
        ({"chunks": []}, "0 checksums, but 5 tokens make 1"),
        ({"documents": 4}, "documents: 3, but the manifest beside it says 4"),
        ({"tokens": 6}, "tokens: 5, but the manifest beside it says 6"),
        ({"dtype": "uint16"}, "dtype: int32, but the manifest beside it says uint16"),
    ],
)
def test_wrong_manifests(small: Path, change: dict[str, Any], message: str) -> None:
    path = Path(f"{small}.json")
    fields = orjson.loads(path.read_bytes()) | change
    del fields["checksum"]  # as after an edit by hand
    path.write_bytes(orjson.dumps({name: value for name, value in fields.items() if value is not None}))
    with pytest.raises(DataError, match=message):
        TokenFile(small)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b"\xff\xfe"])
def test_manifest_that_is_no_json_object(small: Path, content: bytes) -> None:
    Path(f"{small}.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: malformed manifest: no JSON"):
        TokenFile(small)


def test_missing_manifest(small: Path) -> None:
    Path(f"{small}.json").unlink()
    with pytest.raises(DataError, match=r"a\.json: missing"):
        TokenFile(small)


def test_check_refuses_another_tokenizer_or_a_small_vocabulary(small: Path) -> None:
    file = TokenFile(small)
    file.check()
    file.check("5eed", 1000)
    with pytest.raises(DataError, match="made with tokenizer 5eed, not other"):
        file.check("other")
    with pytest.raises(DataError, match="its tokenizer has 1000 ids, the model's vocabulary only 999"):
        file.check(vocab_size=999)


def test_ids_outside_the_vocabulary(small: Path) -> None:
    file = TokenFile(small)
    file.verify_ids(6)
    with pytest.raises(
        DataError, match=r"a\.bin: token id 5 at position 1 of document 2 is outside the vocabulary of 5"
    ):
        file.verify_ids(5)
    put(Path(f"{small}.bin"), 4, struct.pack("<i", -2))
    with pytest.raises(DataError, match=r"token id -2 at position 1 of document 0 "):
        TokenFile(small).verify_ids(6)


def test_ids_of_a_damaged_index(small: Path) -> None:
    put(Path(f"{small}.idx"), 78, struct.pack("<q", 9))
    with pytest.raises(DataError, match=r"a\.idx: the index is damaged: document 1 starts at sequence 9 of 3; restore"):
        TokenFile(small).verify_ids(5)


# All or nothing


def test_nothing_appears_before_the_end(tmp_path: Path) -> None:
    writer = _native.TokenFileWriter(tmp_path / "a", "int32")
    writer.append(np.arange(5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin.tmp", "a.idx.tmp"]
    del writer
    assert not list(tmp_path.iterdir())


def test_forked_child_leaves_its_parents_files(tmp_path: Path) -> None:
    writer = _native.TokenFileWriter(tmp_path / "a", "int32")
    writer.append(np.arange(5))
    if (child := os.fork()) == 0:
        del writer
        os._exit(0)
    os.waitpid(child, 0)
    writer.finalize()
    assert_reads(tmp_path / "a", [np.arange(5)], "int32")


@pytest.mark.parametrize("bad", [np.array([1000]), np.array([-1])])
def test_abort_leaves_nothing(tmp_path: Path, bad: np.ndarray) -> None:
    with (  # noqa: PT012 (leaving the block is what is tested)
        pytest.raises(DataError, match=f"token id {bad[0]}"),
        TokenFileBuilder(tmp_path / "a", "int32", vocab_size=1000, **FACTS) as builder,
    ):
        builder.append_many(np.arange(5), np.array([5]), 9)
        builder.append_many(bad, np.array([1]), 1)
    assert not list(tmp_path.iterdir())


def test_abort_leaves_older_files_as_they_were(small: Path) -> None:
    before = contents(small)
    with (  # noqa: PT012 (leaving the block is what is tested)
        pytest.raises(KeyboardInterrupt),
        TokenFileBuilder(small, "int32", vocab_size=1000, **FACTS) as builder,
    ):
        builder.append_many(np.arange(5), np.array([5]), 9)
        raise KeyboardInterrupt
    assert contents(small) == before
    TokenFile(small).verify()
    assert len(list(small.parent.iterdir())) == 3


def test_builder_refuses_a_dtype_too_small(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="uint16 cannot hold a vocabulary of 125700; use int32"):
        TokenFileBuilder(tmp_path / "a", "uint16", vocab_size=125_700, **FACTS)


@pytest.mark.parametrize("fact", ["name", "lang", "category", "tokenizer_hash"])
def test_builder_refuses_facts_that_make_no_line(tmp_path: Path, fact: str) -> None:
    with pytest.raises(DataError, match=r"'two\\nlines' holds a character that cannot be printed"):
        TokenFileBuilder(tmp_path / "a", "int32", vocab_size=1000, **FACTS | {fact: "two\nlines"})
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.bin\.tmp: missing; make its folder first"):
        TokenFileBuilder(tmp_path / "none" / "a", "int32", vocab_size=1000, **FACTS)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"a\.bin\.tmp: not a directory"):
        TokenFileBuilder(tmp_path / "file" / "a", "int32", vocab_size=1000, **FACTS)
    with pytest.raises(FileNotFoundError) as caught:
        _native.TokenFileWriter(tmp_path / "none" / "a", "int32")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "none" / "a.bin.tmp"))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes; Python ignores the signal, so writes fail with EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(
    ("stage", "tokens", "documents", "name", "limit"),
    [
        (r"a\.bin\.tmp", 1_000_000, 1, "web", 1 << 20),  # while appending
        (r"a\.bin\.tmp", 10_000, 1, "web", 1 << 14),  # what was buffered, at the end
        (r"a\.idx\.tmp", 10, 200_000, "web", 1 << 20),  # the offsets, at the end
        (r"a\.json", 10, 1, "web" * 10_000, 1 << 12),  # the manifest, when the others are complete
    ],
    ids=["append", "data", "index", "manifest"],
)
def test_full_disk(tmp_path: Path, stage: str, tokens: int, documents: int, name: str, limit: int) -> None:
    lengths = np.zeros(documents, int)
    lengths[0] = tokens
    with (
        largest_file(limit),
        pytest.raises(DataError, match=f"{stage}.*: disk full; free some space"),
        TokenFileBuilder(tmp_path / "a", "int32", vocab_size=1000, **FACTS | {"name": name}) as builder,
    ):
        builder.append_many(np.zeros(tokens, int), lengths, 5)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
@pytest.mark.parametrize("suffix", [".bin.tmp", ".idx.tmp", ".json.tmp"])
def test_device_without_space(tmp_path: Path, suffix: str) -> None:
    Path(f"{tmp_path}/a{suffix}").symlink_to("/dev/full")
    with (
        pytest.raises(DataError, match="disk full"),
        TokenFileBuilder(tmp_path / "a", "int32", vocab_size=1000, **FACTS) as builder,
    ):
        builder.append_many(np.arange(5), np.array([5]), 9)
    assert not list(tmp_path.iterdir())
