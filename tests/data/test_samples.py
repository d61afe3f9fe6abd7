"""The samples of a source against the documents they are made of: every token of every epoch, in both packings."""

import itertools
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import mindllm_engine._native as _native
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEQ_LEN = 16
GROUP = 512


def write(prefix: Path, lengths: list[int]) -> Path:
    """A token file whose tokens count up from 0, so that a token tells where it stands."""
    writer = _native.TokenFileWriter(prefix, "int32")
    writer.append_many(np.arange(sum(lengths), dtype=np.int32), np.array(lengths, np.int64))
    writer.finalize()
    return prefix


def opened(prefix: Path) -> tuple[Path, Any]:
    return Path(f"{prefix}.idx"), _native.TokenFileReader(prefix, thorough=False)


def contiguous(prefix: Path, key: int) -> Any:
    return _native.ContiguousSource(*opened(prefix), key)


def packed(prefix: Path, seq_len: int) -> Any:
    return _native.PackedWindows(*opened(prefix), seq_len)


def random_lengths(count: int, seed: int, longest: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(0, longest, count).tolist()


def ranges(stretches: np.ndarray, lengths: list[int]) -> list[tuple[int, int, int]]:
    """(document, first token in it, tokens) of each stretch, after its place in the file has been checked."""
    starts = np.cumsum([0, *lengths])
    for document, in_document, start, count in stretches.tolist():
        assert count > 0
        assert start == starts[document] + in_document
        assert in_document + count <= lengths[document]
    return [(document, begin, count) for document, begin, _, count in stretches.tolist()]


def documents_of_stream(source: Any, lengths: list[int], tokens: int) -> list[int]:
    """The documents of the first `tokens` tokens of a contiguous stream, in order, from samples that must overlap by
    one token, and each document whole and from its beginning."""
    order, expected = [], (0, 0)
    for position in range(0, tokens, SEQ_LEN):
        left = SEQ_LEN
        for number, (document, begin, count) in enumerate(ranges(source.find(position, SEQ_LEN), lengths)):
            if number == 0 and begin > 0:
                assert (document, begin) == expected, "a sample goes on where the last one stopped"
            else:
                assert begin == 0
                order.append(document)
            taken = min(count, left)
            left -= taken
            if taken:
                expected = (document, begin + taken)
            assert left == 0 or begin + taken == lengths[document], "only the end of a sample cuts a document"
        if len(order) > 1 and taken == 0:
            order.pop()  # its first token was the last target; the next sample begins with it
    return order


@pytest.mark.parametrize("count", [1, 7, GROUP, 3 * GROUP + 5])
def test_each_epoch_has_each_document_once(tmp_path: Path, count: int) -> None:
    lengths = [17, *random_lengths(count - 1, seed=count)]
    source = contiguous(write(tmp_path / "a", lengths), key=9)
    epochs = 4
    order = documents_of_stream(source, lengths, epochs * sum(lengths))
    filled = [document for document, length in enumerate(lengths) if length]
    by_epoch = [order[i * len(filled) : (i + 1) * len(filled)] for i in range(epochs)]
    for epoch in by_epoch:
        assert sorted(epoch) == filled
    if count > 7:
        assert len({tuple(epoch) for epoch in by_epoch}) == epochs, "each epoch has an order of its own"
        groups = [document // GROUP for document in by_epoch[0]]
        assert len(list(itertools.groupby(groups))) == len(set(groups)), "neighbours stay near each other"
        inside = [document for document in by_epoch[0] if document // GROUP == 0]
        assert inside != sorted(inside)


def test_samples_do_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    lengths = random_lengths(2000, seed=2)
    file = write(tmp_path / "a", lengths)
    positions = np.random.default_rng(3).integers(0, 100 * sum(lengths), 300).tolist()  # more epochs than are kept
    source = contiguous(file, key=1)
    found = [source.find(position, SEQ_LEN).tolist() for position in positions]
    again = contiguous(file, key=1)
    assert [again.find(position, SEQ_LEN).tolist() for position in reversed(positions)] == found[::-1]
    other = contiguous(file, key=2)
    assert [other.find(position, SEQ_LEN).tolist() for position in positions] != found


def test_a_sample_may_be_longer_than_its_source(tmp_path: Path) -> None:
    lengths = [3, 0, 2, 2]
    source = contiguous(write(tmp_path / "a", lengths), key=1)
    found = ranges(source.find(10, 70), lengths)
    assert sum(count for _, _, count in found) == 71
    assert Counter(document for document, _, count in found if count == lengths[document])[0] >= 9


def predictions(found: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The (document, place of the token that is predicted) pairs of a sample."""
    return [(document, place) for document, begin, count in found for place in range(begin + 1, begin + count)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3 * SEQ_LEN + 4), min_size=1, max_size=60))
def test_packed_samples_predict_each_token_once_an_epoch(tmp_path: Path, lengths: list[int]) -> None:
    packing = packed(write(tmp_path / "a", lengths), SEQ_LEN)
    assert (packing.samples == 0) == (sum(lengths) == 0)
    if packing.samples == 0:
        return
    source = _native.BestFitSource([packing], key=5)
    expected = sorted((document, place) for document, length in enumerate(lengths) for place in range(1, length))
    for epoch in range(2):
        samples = [
            ranges(source.find(epoch * packing.samples + sample, SEQ_LEN), lengths) for sample in range(packing.samples)
        ]
        assert sorted(pair for found in samples for pair in predictions(found)) == expected
        assert all(0 < sum(count for _, _, count in found) <= SEQ_LEN + 1 for found in samples)
        pieces = Counter(document for found in samples for document, _, _ in found)
        for document, length in enumerate(lengths):
            if length <= SEQ_LEN + 1:
                assert pieces[document] == (1 if length else 0), "what fits is whole"


def test_packed_windows_hold_every_document_in_another_order_each_epoch(tmp_path: Path) -> None:
    lengths = random_lengths(5000, seed=4)  # three windows
    packing = packed(write(tmp_path / "a", lengths), SEQ_LEN)
    source = _native.BestFitSource([packing], key=5)
    orders = []
    for epoch in range(2):
        first = epoch * packing.samples
        orders.append([tuple(ranges(source.find(first + s, SEQ_LEN), lengths)) for s in range(packing.samples)])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    whole = [document for found in orders[0] for document, begin, _ in found if begin == 0]
    assert sorted(whole) == [document for document, length in enumerate(lengths) if length]
    padding = 1 - (sum(lengths) / (packing.samples * (SEQ_LEN + 1)))
    assert padding < 0.1


def test_packings_of_several_lengths(tmp_path: Path) -> None:
    lengths = random_lengths(300, seed=4)
    file = write(tmp_path / "a", lengths)
    short, long = packed(file, 8), packed(file, 64)
    source = _native.BestFitSource([short, long], key=5)
    assert max(sum(c for _, _, c in ranges(source.find(s, 8), lengths)) for s in range(short.samples)) == 9
    assert max(sum(c for _, _, c in ranges(source.find(s, 64), lengths)) for s in range(long.samples)) > 60
    with pytest.raises(IndexError, match="not packed for samples of 16"):
        source.find(0, 16)


def write_sequences(prefix: Path, documents: list[list[int]], token_bytes: int = 2) -> None:
    """An .idx of documents of several sequences, as other tools write them, and a sparse .bin of zeros."""
    lengths = [length for document in documents for length in document]
    offsets = np.cumsum([0, *lengths[:-1]]) * token_bytes if lengths else np.array([], np.int64)
    starts = np.cumsum([0, *(len(document) for document in documents)])
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, {2: 8, 4: 4}[token_bytes], len(lengths), len(starts))
    tables = (np.array(lengths, "<i4"), np.array(offsets, "<i8"), np.array(starts, "<i8"))
    Path(f"{prefix}.idx").write_bytes(header + b"".join(table.tobytes() for table in tables))
    with Path(f"{prefix}.bin").open("wb") as file:
        file.truncate(sum(lengths) * token_bytes)


def test_documents_of_several_sequences(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 12, rng.integers(0, 5)).tolist() for _ in range(1500)]
    documents[3], documents[4] = [], [5, 5]  # as many sequences as documents would not make them one each
    write_sequences(tmp_path / "a", documents)
    lengths = [sum(document) for document in documents]
    source = contiguous(tmp_path / "a", key=3)
    order = documents_of_stream(source, lengths, sum(lengths))
    whole = [document for document, length in enumerate(lengths) if length]
    assert sorted(order[: len(whole)]) == whole


def test_as_many_sequences_as_documents_are_not_always_one_each(tmp_path: Path) -> None:
    documents = [[number % 7 + 1] for number in range(40_000)]
    documents[30_000:30_002] = [[], [5, 6]]
    write_sequences(tmp_path / "a", documents)
    lengths = [sum(document) for document in documents]
    source = contiguous(tmp_path / "a", key=3)
    found = ranges(source.find(0, sum(lengths) - 1), lengths)
    assert sorted(found) == [(document, 0, length) for document, length in enumerate(lengths) if length]


def test_documents_of_no_tokens_and_of_three_billion(tmp_path: Path) -> None:
    giant = 3_000_000_000
    documents = [[], [0], [1_500_000_000, 1_500_000_000], [7], [], [20]]
    write_sequences(tmp_path / "a", documents)
    lengths = [sum(document) for document in documents]
    file = tmp_path / "a"
    source = contiguous(file, key=3)
    for position in (0, giant // 2, giant - 3, giant, giant + 20):
        assert sum(count for _, _, count in ranges(source.find(position, SEQ_LEN), lengths)) == SEQ_LEN + 1
    packing = packed(file, 2048)
    assert packing.samples == -(-(giant - 1) // 2048)  # 7 and 20 fit beside the giant's rest
    samples = _native.BestFitSource([packing], key=3)
    begins = {ranges(samples.find(sample, 2048), lengths)[0][1] for sample in range(200)}
    assert len(begins) == 200
    assert all(begin % 2048 == 0 for begin in begins)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_a_source_without_tokens_is_refused(tmp_path: Path, lengths: list[int]) -> None:
    file = write(tmp_path / "a", lengths)
    with pytest.raises(ValueError, match="no tokens to make samples of"):
        contiguous(file, key=1)
    with pytest.raises(ValueError, match="no tokens to make samples of"):
        _native.BestFitSource([packed(file, SEQ_LEN)], key=1)


def read_all(source: Any, tokens: int) -> None:
    for position in range(0, tokens, SEQ_LEN):
        source.find(position, SEQ_LEN)


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("at_opening", [True, False])
def test_damaged_lengths_are_noticed_before_anything_is_read_by_them(tmp_path: Path, at_opening: bool) -> None:
    lengths = random_lengths(3 * GROUP, seed=6)
    file = write(tmp_path / "a", lengths)
    source = None if at_opening else contiguous(file, key=1)
    put(tmp_path / "a.idx", 34 + 4 * 700, struct.pack("<i", lengths[700] + 1))
    with pytest.raises(ValueError, match=r"a\.idx: damaged: "):
        read_all(source or contiguous(file, key=1), sum(lengths))


@pytest.mark.parametrize("size", [0, 20, 34 + 4 * 600])
def test_an_index_cut_short_after_it_was_opened(tmp_path: Path, size: int) -> None:
    lengths = random_lengths(3 * GROUP, seed=6)
    source = contiguous(write(tmp_path / "a", lengths), key=1)
    with (tmp_path / "a.idx").open("r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=r"a\.idx: cut short while it was read"):
        read_all(source, sum(lengths))


LONGEST = (1 << 24) - 1


@pytest.mark.parametrize(
    ("position", "seq_len"),
    [(-1, 4), (0, 0), (0, -1), (0, LONGEST + 1), (0, 1 << 40), (0, 2**63 - 1), (2**63 - 1, 1), (2**63 - 17, 16)],
)
def test_positions_and_lengths_beyond_counting_are_refused(tmp_path: Path, position: int, seq_len: int) -> None:
    file = write(tmp_path / "a", [3, 1])
    best_fit = _native.BestFitSource([packed(file, 16)], key=1)
    for source in (contiguous(file, key=1), best_fit):
        with pytest.raises(IndexError, match=f"no sample of {seq_len} tokens at {position}"):
            source.find(position, seq_len)


def test_the_last_position_that_is_counted(tmp_path: Path) -> None:
    source = contiguous(write(tmp_path / "a", [1]), key=1)  # as many epochs as there are positions
    assert source.find(2**63 - 18, 16).tolist() == [[0, 0, 0, 1]] * 17


def test_a_sample_of_endless_epochs_is_refused(tmp_path: Path) -> None:
    source = contiguous(write(tmp_path / "a", [1, 2]), key=1)
    assert source.find(0, 3 * 65_535)[:, 3].sum() == 3 * 65_535 + 1
    with pytest.raises(ValueError, match=r"a\.idx: 3 tokens are too few for samples of 16777215"):
        source.find(0, LONGEST)


@pytest.mark.parametrize("seq_len", [0, -1, LONGEST + 1, 1 << 40, 2**63 - 1, -(2**63)])
def test_lengths_that_no_packing_has(tmp_path: Path, seq_len: int) -> None:
    for lengths in ([], [3, 1]):
        with pytest.raises(ValueError, match=f"samples of {seq_len} tokens; give 1 to 16777215"):
            packed(write(tmp_path / "a", lengths), seq_len)


def test_packings_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not None"):
        _native.BestFitSource([packed(write(tmp_path / "a", [3]), 16), None], key=1)


def test_lengths_that_change_after_packing_and_add_up_all_the_same(tmp_path: Path) -> None:
    lengths = [10, 7] * 20  # a sample for each pair
    source = _native.BestFitSource([packed(write(tmp_path / "a", lengths), SEQ_LEN)], key=1)
    put(tmp_path / "a.idx", 34, struct.pack("<40i", *[17, 0] * 10, *[9, 8] * 10))
    assert sum(len(source.find(sample, SEQ_LEN)) for sample in range(20)) == 30  # as many samples: the new documents
    put(tmp_path / "a.idx", 34, struct.pack("<40i", *[340], *[0] * 39))
    with pytest.raises(ValueError, match=r"a\.idx: damaged: it has changed since it was opened"):
        source.find(0, SEQ_LEN)


@pytest.mark.parametrize("kind", [contiguous, packed])
def test_another_index_in_the_place_of_the_one_that_was_opened(tmp_path: Path, kind: Any) -> None:
    index, reader = opened(write(tmp_path / "a", [5] * 20))
    shorter, _ = opened(write(tmp_path / "b", [100]))
    shorter.replace(index)
    make = {contiguous: _native.ContiguousSource, packed: _native.PackedWindows}[kind]
    with pytest.raises(ValueError, match=r"a\.idx: (damaged: it has changed|cut short)"):
        make(index, reader, 7)
