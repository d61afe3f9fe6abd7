"""Token files against megatron-core's own reader and writer, round trips, and calls that are wrong."""

import subprocess
import sys
import threading
import warnings
from pathlib import Path

import mindllm_engine._native as _native
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.process_memory import forget_peak, peak_bytes, resident_bytes
from mindllm_engine.data.token_file_builder import TokenFileBuilder, token_dtype
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from tests.data.token_file_cases import FACTS, assert_reads, build, contents, flat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about optional accelerator packages
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, _IndexWriter

DTYPES = ["uint16", "int32"]


def some_documents(dtype: str, count: int = 300) -> list[np.ndarray]:
    """Documents of 0 to 40 tokens over the whole range of `dtype`, with empty ones at both ends and in the middle."""
    random = np.random.default_rng(count)
    lengths = random.integers(0, 40, count)
    lengths[[0, count // 2, -1]] = 0
    return [random.integers(0, np.iinfo(dtype).max, n, endpoint=True).astype(dtype) for n in lengths]


def write_native(prefix: Path, documents: list[np.ndarray], dtype: str) -> None:
    writer = _native.TokenFileWriter(prefix, dtype)
    for document in documents:
        writer.append(document)
    writer.finalize()


def write_megatron(prefix: Path, documents: list[np.ndarray], dtype: str) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=getattr(np, dtype))
    for document in documents:
        builder.add_document(document.astype(np.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")


# Megatron


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [3, 300, 66_000])
def test_files_are_megatrons_to_the_byte(tmp_path: Path, dtype: str, count: int) -> None:
    documents = some_documents(dtype, count)
    write_megatron(tmp_path / "theirs", documents, dtype)
    write_native(tmp_path / "ours", documents, dtype)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_megatron_reads_ours_and_we_read_megatrons(tmp_path: Path, dtype: str) -> None:
    documents = some_documents(dtype)
    write_native(tmp_path / "ours", documents, dtype)
    theirs = IndexedDataset(str(tmp_path / "ours"))
    assert len(theirs) == len(documents)
    np.testing.assert_array_equal(theirs.document_indices, np.arange(len(documents) + 1))
    for index, document in enumerate(documents):
        np.testing.assert_array_equal(theirs[index], document)

    write_megatron(tmp_path / "theirs", documents, dtype)
    assert_reads(tmp_path / "theirs", documents, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("documents", [[], [np.empty(0, np.int64)] * 3], ids=["no documents", "only empty ones"])
def test_files_without_tokens(tmp_path: Path, dtype: str, documents: list[np.ndarray]) -> None:
    write_megatron(tmp_path / "theirs", documents, dtype)
    write_native(tmp_path / "ours", documents, dtype)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert_reads(tmp_path / "theirs", documents, dtype)
    # Megatron itself cannot map an empty .bin; without the map it reads it.
    assert len(IndexedDataset(str(tmp_path / "ours"), mmap=False)) == len(documents)

    reader = _native.TokenFileReader(tmp_path / "ours")
    reader.gather(np.array([0]), np.array([0]), np.empty(0, np.int64))
    assert reader.max_token() == -1
    assert reader.find_stray(1) is None

    build(tmp_path / "built", documents, dtype)
    TokenFile(tmp_path / "built").verify()


@pytest.mark.parametrize("dtype", DTYPES)
def test_documents_of_several_sequences(tmp_path: Path, dtype: str) -> None:
    sequences = some_documents(dtype, 50)
    builder = IndexedDatasetBuilder(f"{tmp_path}/theirs.bin", dtype=getattr(np, dtype))
    documents = []
    for start in range(0, 50, 5):  # five sequences a document, and a document of none after each
        for sequence in sequences[start : start + 5]:
            builder.add_item(torch.from_numpy(sequence.astype(np.int64)))
        builder.end_document()
        builder.end_document()
        documents += [np.concatenate(sequences[start : start + 5]), np.empty(0, dtype)]
    builder.finalize(f"{tmp_path}/theirs.idx")
    assert_reads(tmp_path / "theirs", documents, dtype)

    writer = _native.TokenFileWriter(tmp_path / "merged", dtype)
    writer.append_file(tmp_path / "theirs")
    writer.finalize()
    assert_reads(tmp_path / "merged", documents, dtype)
    stray = documents[2].copy()
    assert _native.TokenFileReader(tmp_path / "theirs").find_stray(int(stray.max()))[2] >= stray.max()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int64"])
def test_foreign_dtypes_are_readable(tmp_path: Path, dtype: str) -> None:
    documents = some_documents(dtype, 20)
    write_megatron(tmp_path / "theirs", documents, dtype)
    assert_reads(tmp_path / "theirs", documents, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_refused(tmp_path: Path, dtype: str) -> None:
    write_megatron(tmp_path / "theirs", [np.arange(3)], dtype)
    with pytest.raises(ValueError, match=r"theirs\.idx: dtype code \d means floats"):
        _native.TokenFileReader(tmp_path / "theirs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_than_two_to_the_31_tokens(tmp_path: Path, dtype: str) -> None:
    prefix, item_bytes = tmp_path / "large", np.dtype(dtype).itemsize
    lengths = np.array([2**31 - 1, 5, 7])
    planted = {2**31 - 2: 11, 2**31 + 1: 22, 2**31 + 10: 33}
    with open(f"{prefix}.bin", "wb") as file:  # sparse: takes no room on the disk
        file.truncate(int(lengths.sum()) * item_bytes)
        for position, token in planted.items():
            file.seek(position * item_bytes)
            file.write(np.array([token], dtype).tobytes())
    _native.write_index(f"{prefix}.idx", dtype, lengths)
    with _IndexWriter(f"{tmp_path}/theirs.idx", getattr(np, dtype)) as theirs:
        theirs.write(lengths.tolist(), None, [0, 1, 2, 3])
    assert Path(f"{prefix}.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()

    reader = _native.TokenFileReader(prefix)
    assert (reader.documents, reader.tokens) == (3, 2**31 + 11)
    for position, token in planted.items():
        assert reader.read(position, 1).tolist() == [token]
    out = np.empty(9, np.int64)
    reader.gather(np.array([2**31 - 2, 2**31 + 10]), np.array([8, 1]), out)
    assert out.tolist() == [11, 0, 0, 22, 0, 0, 0, 0, 33]
    megatron = IndexedDataset(str(prefix))
    for index in (1, 2):
        np.testing.assert_array_equal(megatron[index], reader.document(index))
    assert reader.document(1).tolist() == [0, 0, 22, 0, 0]
    assert reader.document(2).tolist() == [0, 0, 0, 0, 0, 0, 33]
    assert len(reader.document(0)) == 2**31 - 1


# Round trips


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    given_dtypes = st.sampled_from(
        [d for d in ("uint16", "int32", "uint32", "int64", ">i8") if np.iinfo(d).max >= 2**16]
    )
    ids = st.integers(0, np.iinfo(dtype).max)
    calls = data.draw(st.lists(st.lists(st.lists(ids, max_size=8), max_size=6), max_size=5))
    documents = []
    writer = _native.TokenFileWriter(tmp_path / "a", dtype)
    for call in calls:
        arrays = [np.array(document, data.draw(given_dtypes)) for document in call]
        if len(arrays) == 1:
            writer.append(arrays[0])
        else:
            writer.append_many(
                np.concatenate([np.empty(0, np.int64), *arrays]), np.array([len(a) for a in arrays], int)
            )
        documents += [array.astype(dtype) for array in arrays]
    assert (writer.documents, writer.tokens) == (len(documents), sum(map(len, documents)))
    writer.finalize()
    assert_reads(tmp_path / "a", documents, dtype)

    reader = _native.TokenFileReader(tmp_path / "a")
    stream = flat(documents, dtype)[0]
    ranges = data.draw(st.lists(st.tuples(*[st.integers(0, len(stream))] * 2).map(sorted), max_size=5))
    starts, ends = np.array(ranges, np.int64).reshape(-1, 2).T
    expected = np.concatenate([stream[:0], *[stream[start:end] for start, end in ranges]])
    for out_dtype in (np.int32, np.int64):
        out = np.full(len(expected), -1, out_dtype)
        reader.gather(starts, ends - starts, out)
        np.testing.assert_array_equal(out, expected)
    assert reader.max_token() == max(stream, default=-1)


def test_merged_shards_equal_one_file(tmp_path: Path) -> None:
    documents = [d % 1000 for d in some_documents("int32")]
    build(tmp_path / "whole", documents)
    build(tmp_path / "shard.0", documents[:100])
    build(tmp_path / "shard.1", documents[100:])
    with TokenFileBuilder(tmp_path / "merged", "int32", vocab_size=1000, **FACTS) as builder:
        builder.append_file(tmp_path / "shard.0")
        builder.append_file(tmp_path / "shard.1")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert TokenFile(tmp_path / "merged").manifest == TokenFile(tmp_path / "whole").manifest


def test_views_are_read_only_and_outlive_the_reader(tmp_path: Path) -> None:
    write_native(tmp_path / "a", [np.arange(5)], "int32")
    view = _native.TokenFileReader(tmp_path / "a").document(0)
    assert view.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.setflags(write=True)


def test_threads_may_share_a_writer(tmp_path: Path) -> None:
    writer = _native.TokenFileWriter(tmp_path / "a", "int32")
    threads = [
        threading.Thread(target=lambda k=k: [writer.append(np.full(50, k)) for _ in range(200)]) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.finalize()
    reader = _native.TokenFileReader(tmp_path / "a")
    assert reader.documents == 800
    firsts = [document[0] for document in map(reader.document, range(800)) if (document == document[0]).all()]
    assert np.bincount(firsts).tolist() == [200] * 4


def test_memory_of_writing_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    piece, index_bytes = 100_000, 60 << 20
    forget_peak()
    before = resident_bytes()
    with TokenFileBuilder(tmp_path / "a", "uint16", vocab_size=10, **FACTS) as builder:
        for _ in range(index_bytes // (20 * piece) + 1):
            builder.append_many(np.zeros(piece, np.uint16), np.ones(piece, np.int64), 0)
    assert (tmp_path / "a.idx").stat().st_size > index_bytes
    assert peak_bytes() - before < 16 << 20


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, "uint16"), (65_500, "int32"), (125_700, "int32")])
def test_token_dtype_is_megatrons(vocab_size: int, dtype: str) -> None:
    from megatron.core.datasets.indexed_dataset import DType

    assert token_dtype(vocab_size) == dtype == DType.optimal_dtype(vocab_size).__name__


# What callers get wrong


@pytest.mark.parametrize(
    ("dtype", "token"),
    [("uint16", -1), ("uint16", 65_536), ("int32", -1), ("int32", 2**31), ("int32", 2**40), ("int32", 2**64 - 1)],
)
def test_writer_names_an_id_that_does_not_fit(tmp_path: Path, dtype: str, token: int) -> None:
    writer = _native.TokenFileWriter(tmp_path / "a", dtype)
    writer.append(np.array([1, 2]))
    tokens = np.array([3, 4, 5, token], np.uint64 if token >= 2**63 else np.int64)
    with pytest.raises(ValueError, match=rf"token id {token} at position 1 of document 3 does not fit {dtype}"):
        writer.append_many(tokens, np.array([2, 0, 2]))
    writer.finalize()  # nothing of the call was written
    assert_reads(tmp_path / "a", [np.array([1, 2])], dtype)


@pytest.mark.parametrize("lengths", [[3], [2, 3], [5, -1], [2**62, 2**62, 4], []])
def test_writer_refuses_lengths_that_do_not_add_up(tmp_path: Path, lengths: list[int]) -> None:
    writer = _native.TokenFileWriter(tmp_path / "a", "int32")
    with pytest.raises(ValueError, match="length"):
        writer.append_many(np.arange(4), np.array(lengths, np.int64))
    assert (writer.documents, writer.tokens) == (0, 0)


def test_writer_refuses_what_is_no_array_of_integers(tmp_path: Path) -> None:
    writer = _native.TokenFileWriter(tmp_path / "a", "int32")
    for tokens in (np.ones(3), np.ones((2, 2), int), np.ones(3, bool), np.array(["a"]), [1, 2]):
        with pytest.raises(TypeError):
            writer.append(tokens)
    with pytest.raises(TypeError, match="lengths"):
        writer.append_many(np.arange(3), np.array([3.0]))
    with pytest.raises(ValueError, match="float32"):
        _native.TokenFileWriter(tmp_path / "b", "float32")
    with pytest.raises(ValueError, match=r"c\.idx: document 0 has a length of 2147483648 tokens"):
        _native.write_index(tmp_path / "c.idx", "int32", np.array([2**31]))
    assert not (tmp_path / "c.idx").exists()


def test_writer_is_closed_after_the_end(tmp_path: Path) -> None:
    for end in ("finalize", "abort"):
        writer = _native.TokenFileWriter(tmp_path / end, "int32")
        getattr(writer, end)()
        for call, arguments in ((writer.finalize, ()), (writer.append, (np.arange(2),)), (writer.append_file, ("x",))):
            with pytest.raises(RuntimeError, match="finalized or aborted"):
                call(*arguments)
        writer.abort()


def test_files_of_another_dtype_or_tokenizer_are_not_merged(tmp_path: Path) -> None:
    build(tmp_path / "a", [np.arange(3)], "uint16")
    with (
        pytest.raises(DataError, match="holds uint16 tokens"),
        TokenFileBuilder(tmp_path / "b", "int32", vocab_size=1000, **FACTS) as builder,
    ):
        builder.append_file(tmp_path / "a")
    with (
        pytest.raises(DataError, match="tokenizer 5eed, not other"),
        TokenFileBuilder(tmp_path / "b", "uint16", vocab_size=1000, **FACTS | {"tokenizer_hash": "other"}) as builder,
    ):
        builder.append_file(tmp_path / "a")
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize(
    ("starts", "counts", "room"),
    [
        ([-1], [1], 1),
        ([0], [-1], 0),
        ([0], [11], 11),
        ([11], [0], 0),
        ([2**62], [2**62], 4),
        ([0, 5], [5, 4], 10),
        ([0], [5], 4),
    ],
)
def test_gather_outside_the_stream(tmp_path: Path, starts: list[int], counts: list[int], room: int) -> None:
    write_native(tmp_path / "a", [np.arange(10)], "int32")
    out = np.full(room, -7, np.int64)
    with pytest.raises(IndexError):
        _native.TokenFileReader(tmp_path / "a").gather(np.array(starts), np.array(counts), out)
    assert (out == -7).all()


def test_reader_refuses_wrong_calls(tmp_path: Path) -> None:
    write_native(tmp_path / "a", [np.arange(10)], "int32")
    reader = _native.TokenFileReader(tmp_path / "a")
    for index in (-1, 1, 2**62):
        with pytest.raises(IndexError):
            reader.document(index)
    for start, count in ((-1, 1), (0, 11), (10, 1), (2**63 - 1, 2**63 - 1), (0, -1)):
        with pytest.raises(IndexError):
            reader.read(start, count)
    start, count = np.array([0]), np.array([4])
    read_only = np.empty(4, np.int64)
    read_only.setflags(write=False)
    for out in (np.empty(4, np.int16), np.empty(4), np.empty(8, np.int64)[::2], np.empty((2, 2), np.int64)):
        with pytest.raises(TypeError):
            reader.gather(start, count, out)
    with pytest.raises(ValueError, match="writ"):
        reader.gather(start, count, read_only)
    with pytest.raises(ValueError, match="one length"):
        reader.gather(start, np.array([1, 3]), np.empty(4, np.int64))


def test_gather_refuses_an_id_beyond_int32(tmp_path: Path) -> None:
    write_megatron(tmp_path / "theirs", [np.array([1, 2**40])], "int64")
    reader = _native.TokenFileReader(tmp_path / "theirs")
    with pytest.raises(ValueError, match=f"token id {2**40} does not fit int32"):
        reader.gather(np.array([0]), np.array([2]), np.empty(2, np.int32))


OPEN_AND_FORGET = """
import sys, threading, time
import mindllm_engine._native as native

prefix, until = sys.argv[1], time.monotonic() + 2

def open_and_forget():
    while time.monotonic() < until:
        reader = native.TokenFileReader(prefix)
        native.DocumentIndex(prefix + ".idx", reader, 512)

threads = [threading.Thread(target=open_and_forget) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_that_open_files_leave_the_process_whole(tmp_path: Path) -> None:
    """Objects registered without the GIL ended the process within these two seconds, each time of three."""
    write_native(tmp_path / "file", some_documents("uint16"), "uint16")
    command = [sys.executable, "-c", OPEN_AND_FORGET, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
