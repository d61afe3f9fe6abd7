"""Statistics of documents' lengths against numpy on all lengths at once, and their memory on a file of 20 million."""

import subprocess
import sys
from pathlib import Path

import mindllm_engine._native as _native
import numpy as np
import pytest

from mindllm_engine.data.length_statistics import GROUP, LengthCounter, LengthStatistics, measure_lengths
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.packing import pack_best_fit
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from tests.data.token_file_cases import FACTS, build

ROOT = Path(__file__).parents[2]


def count(lengths: np.ndarray, seq_lens: tuple[int, ...] = (), parts: int = 1) -> LengthStatistics:
    counter = LengthCounter(seq_lens)
    for part in np.array_split(lengths, parts):
        counter.add(part)
    return counter.statistics()


def assert_statistics(found: LengthStatistics, lengths: np.ndarray) -> None:
    assert found.documents == len(lengths)
    assert found.tokens == lengths.sum()
    assert found.empty == (lengths == 0).sum()
    assert found.mean == pytest.approx(lengths.mean())
    assert found.longest == lengths.max()
    for value, share in ((found.median, 0.5), (found.p90, 0.9), (found.p99, 0.99)):
        exact = np.sort(lengths)[int(np.ceil(round(share * len(lengths), 6))) - 1]
        assert value <= exact <= value + value // 16384
        assert value == exact or exact >= 32768
    for seq_len, longer in found.longer.items():
        assert longer == (lengths > seq_len + 1).sum()
    for seq_len, packed in found.packed.items():
        assert packed == pack_best_fit(lengths, seq_len + 1).tokens
    assert sum(one.documents for one in found.histogram) == len(lengths)
    for one in found.histogram:
        inside = lengths[(lengths >= one.shortest) & (lengths <= one.longest)]
        assert (one.documents, one.tokens) == (len(inside), inside.sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("top", "seq_lens"), [(3, (4,)), (300, (4, 16, 255)), (20_000, (255,)), (3_000_000, (4096, 100_000))]
)
def test_agrees_with_numpy(seed: int, top: int, seq_lens: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.floor(np.exp(rng.uniform(0, np.log(top), rng.integers(1, 3000)))).astype(np.int64)
    lengths[rng.random(len(lengths)) < 0.1] = 0
    assert_statistics(count(lengths, seq_lens, parts=seed + 1), lengths)


def test_lengths_at_the_borders_of_bins() -> None:
    lengths = np.array([0, 1, 2, 3, 4, 7, 8, 255, 256, 32767, 32768, 32769, 65535, 2**31 - 1, 3_000_000_000, 2**40])
    found = count(lengths)
    assert_statistics(found, lengths)
    assert [(one.shortest, one.longest) for one in found.histogram[:4]] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    assert found.histogram[-1].shortest == 2**40


def test_nothing_and_nothing_but_empty_documents() -> None:
    nothing = count(np.zeros(0, np.int64), (8,))
    assert (nothing.documents, nothing.tokens, nothing.median, nothing.longest, nothing.histogram) == (0, 0, 0, 0, [])
    empty = count(np.zeros(5, np.int64), (8,))
    assert (empty.documents, empty.empty, empty.mean, empty.p99) == (5, 5, 0, 0)
    assert [one.documents for one in empty.histogram] == [5]


def test_a_file_of_several_groups(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(0, 9, 2 * GROUP + 77)
    build(tmp_path / "a", [np.zeros(length, np.int32) for length in lengths.tolist()])
    assert_statistics(measure_lengths(TokenFile(tmp_path / "a"), [4]), lengths)


def test_documents_of_several_sequences(tmp_path: Path) -> None:
    """As Megatron writes them when it splits sentences."""
    build(tmp_path / "a", [np.zeros(length, np.int32) for length in (3, 4, 5, 6)])
    index = tmp_path / "a.idx"
    content = bytearray(index.read_bytes())
    starts = np.array([0, 2, 2, 3, 4], np.int64)
    assert np.frombuffer(content[-40:], np.int64).tolist() == [0, 1, 2, 3, 4]
    content[-40:] = starts.tobytes()
    index.write_bytes(content)
    assert_statistics(measure_lengths(TokenFile(tmp_path / "a"), [4]), np.array([7, 0, 5, 6]))


def test_a_damaged_index_is_one_line(tmp_path: Path) -> None:
    build(tmp_path / "a", [np.zeros(length, np.int32) for length in (3, 4, 5, 6)])
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[34 + 4 : 34 + 8] = np.int32(-4).tobytes()
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.idx: damaged: a sequence from 0 on has a negative length; restore"):
        measure_lengths(TokenFile(tmp_path / "a"), [4])


def test_a_group_that_does_not_exist(tmp_path: Path) -> None:
    build(tmp_path / "a", [np.zeros(3, np.int32)] * 5)
    file = TokenFile(tmp_path / "a")
    index = _native.DocumentIndex(file.index_path, file.reader, 2)
    assert [index.lengths(group).tolist() for group in range(index.groups)] == [[3, 3], [3, 3], [3]]
    for group in (-1, 3):
        with pytest.raises(IndexError, match="there is no group"):
            index.lengths(group)
    with pytest.raises(IndexError, match="one document at least"):
        _native.DocumentIndex(file.index_path, file.reader, 0)


def test_an_index_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    build(tmp_path / "a", [np.zeros(3, np.int32)] * 5)
    file = TokenFile(tmp_path / "a")
    index = _native.DocumentIndex(file.index_path, file.reader, 2)
    with (tmp_path / "a.idx").open("r+b") as stream:
        stream.seek(34)
        stream.write(np.int32(9).tobytes())
    with pytest.raises(ValueError, match="changed since it was opened"):
        index.lengths(0)
    assert index.lengths(1).tolist() == [3, 3]
    (tmp_path / "a.idx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.idx"):
        index.lengths(1)


MEASURE = """
import resource, sys
from mindllm_engine.data.length_statistics import measure_lengths
from mindllm_engine.data.token_files import TokenFile
file = TokenFile(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = measure_lengths(file, [2048])
print(found.documents, found.tokens, found.median, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_flat_at_20_million_documents(tmp_path: Path) -> None:
    documents = 20_000_000
    lengths = np.random.default_rng(0).integers(100, 901, documents, dtype=np.int32)
    tokens = int(lengths.sum())
    _native.write_index(f"{tmp_path}/a.idx", "uint16", lengths)
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(2 * tokens)  # takes no room on the disk
    Manifest(
        **FACTS, vocab_size=1000, dtype="uint16", documents=documents, tokens=tokens, text_bytes=tokens,
        chunk_bytes=1 << 40, chunks=["0" * 16], index_checksum="0" * 16,
    ).save(tmp_path / "a")  # fmt: skip
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=200)
    found_documents, found_tokens, median, kib = map(int, done.stdout.split())
    (tmp_path / "a.idx").unlink()
    assert (found_documents, found_tokens) == (documents, tokens)
    assert median == int(np.median(lengths))
    assert kib < 30 * 1024
