"""Best-fit packing against plain best-fit decreasing in Python, and what must hold for any packing."""

import contextlib
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import mindllm_engine._native as _native
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.data.packing import Packing, pack_best_fit
from mindllm_engine.errors import DataError

Bin = list[tuple[int, int, int]]


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[int], int]:
    """(lengths, capacity): few different lengths or many, small ones or such that some are cut."""
    capacity = draw(st.one_of(st.integers(2, 40), st.sampled_from([63, 64, 65, 128, 1000, 4095, 4096, 4097, 9000])))
    longest = draw(st.sampled_from([3, capacity // 2 + 1, capacity, 4 * capacity]))
    length = st.one_of(st.integers(0, longest), st.sampled_from([1, capacity - 1, capacity, capacity + 1]))
    return draw(st.lists(length, max_size=80)), capacity


def pieces_of(document: int, length: int, capacity: int) -> Bin:
    """The pieces of a document, by walking through it."""
    pieces, start = [], 0
    while start < length:
        pieces.append((document, start, min(capacity, length - start)))
        start = start + capacity - 1 if start + capacity < length else length
    return pieces


def oracle(lengths: list[int], capacity: int) -> list[Bin]:
    """Best-fit decreasing as its definition says: every piece looks at every bin."""
    pieces = [piece for document, length in enumerate(lengths) for piece in pieces_of(document, length, capacity)]
    full = [[piece] for piece in pieces if piece[2] == capacity]
    bins: list[dict] = []
    rest = sorted((piece for piece in pieces if piece[2] < capacity), key=lambda piece: (-piece[2], piece[0]))
    for now, piece in enumerate(rest):
        holding = [candidate for candidate in bins if candidate["room"] >= piece[2]]
        if not holding:
            holding = [{"room": capacity, "filled": 0, "pieces": []}]
            bins += holding
        best = min(holding, key=lambda candidate: (candidate["room"], -candidate["filled"]))
        best["room"] -= piece[2]
        best["filled"] = now
        best["pieces"].append(piece)
    return full + [sorted(packed["pieces"]) for packed in bins]


def bins_of(packing: Packing) -> list[Bin]:
    columns = (packing.documents.tolist(), packing.starts.tolist(), packing.counts.tolist())
    pieces = list(zip(*columns, strict=True))
    ends = packing.bin_starts.tolist()
    return [pieces[start:end] for start, end in itertools.pairwise(ends)]


def packer_bins(packer: _native.BestFitPacker) -> list[Bin]:
    return [packer.pieces(bin) for bin in range(packer.bins)]


def text_lengths(documents: int, seed: int) -> np.ndarray:
    """Lengths like those of web text: log-normal with a mean of about 500 tokens."""
    return np.random.default_rng(seed).lognormal(5.5, 1.2, documents).astype(np.int64).clip(1, 200_000)


# What is packed where


@settings(max_examples=500, deadline=None)
@given(windows())
def test_is_best_fit_decreasing(window: tuple[list[int], int]) -> None:
    lengths, capacity = window
    expected = oracle(lengths, capacity)
    packing = pack_best_fit(lengths, capacity)
    assert bins_of(packing) == expected
    assert (packing.bins, packing.capacity) == (len(expected), capacity)
    packer = _native.BestFitPacker()
    assert packer.count_bins(np.array(lengths, dtype=np.int64), capacity) == len(expected)


@pytest.mark.parametrize(("documents", "capacity"), [(3000, 2049), (512, 32_769), (4000, 1025)])
def test_is_best_fit_decreasing_on_lengths_like_those_of_text(documents: int, capacity: int) -> None:
    lengths = text_lengths(documents, seed=capacity)
    assert bins_of(pack_best_fit(lengths, capacity)) == oracle(lengths.tolist(), capacity)


@settings(max_examples=300, deadline=None)
@given(windows())
def test_every_prediction_once_and_nothing_split_that_fits(window: tuple[list[int], int]) -> None:
    lengths, capacity = window
    packing = pack_best_fit(lengths, capacity)
    found: list[tuple[int, int]] = []
    for document, start, count in zip(packing.documents, packing.starts, packing.counts, strict=True):
        assert 1 <= count <= capacity
        assert 0 <= start <= start + count <= lengths[document]
        assert count == lengths[document] or lengths[document] > capacity
        found += [(int(document), int(position)) for position in range(start, start + count - 1)]
    wanted = [(document, position) for document, length in enumerate(lengths) for position in range(length - 1)]
    assert sorted(found) == wanted
    assert set(packing.documents.tolist()) == {document for document, length in enumerate(lengths) if length > 0}
    held = [sum(count for _, _, count in packed) for packed in bins_of(packing)]
    assert all(0 < tokens <= capacity for tokens in held)
    assert packing.tokens == sum(held)


C = 100


@pytest.mark.parametrize(
    ("length", "counts"),
    [
        (0, []),
        (1, [1]),
        (2, [2]),
        (C - 1, [C - 1]),
        (C, [C]),
        (C + 1, [C, 2]),
        (2 * C - 2, [C, C - 1]),
        (2 * C - 1, [C, C]),
        (2 * C, [C, C, 2]),
        (3 * C - 2, [C, C, C]),
    ],
)
def test_lengths_about_the_capacity(length: int, counts: list[int]) -> None:
    packing = pack_best_fit([length], C)
    assert packing.counts.tolist() == counts
    assert packing.starts.tolist() == [piece * (C - 1) for piece in range(len(counts))]


def test_equal_documents_go_by_their_order_and_into_the_bin_filled_last() -> None:
    # 6, 6, 6 open bins of room 4; each 2 goes to the bin filled last, which the next 2 then fills.
    assert bins_of(pack_best_fit([2, 6, 2, 6, 6, 2], 10)) == [
        [(1, 0, 6)],
        [(3, 0, 6), (5, 0, 2)],
        [(0, 0, 2), (2, 0, 2), (4, 0, 6)],
    ]


def test_efficiency_is_the_share_of_the_room_that_is_filled() -> None:
    assert pack_best_fit([6, 6, 3], 10).efficiency == 15 / 20
    assert pack_best_fit([10, 5, 5], 10).efficiency == 1.0
    assert pack_best_fit([], 10).efficiency == 1.0


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_to_pack(lengths: list[int]) -> None:
    packing = pack_best_fit(lengths, 10)
    assert (packing.bins, packing.tokens) == (0, 0)
    assert packing.bin_starts.tolist() == [0]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, ">i8"])
def test_any_integers_and_strides(dtype: str) -> None:
    lengths = np.arange(100, dtype=np.int64)[::3]
    assert bins_of(pack_best_fit(lengths.astype(dtype), 40)) == oracle(lengths.tolist(), 40)
    assert bins_of(pack_best_fit(np.arange(100).astype(dtype)[::3], 40)) == oracle(lengths.tolist(), 40)


# Documents of billions of tokens


def test_a_document_of_three_billion_tokens_among_others() -> None:
    packer = _native.BestFitPacker()
    packer.pack(np.array([7, 2 * 2048 + 1, 0, 3_000_000_000, 5000]), 2049)
    # Its 2,999,999,999 predictions are 1,464,843 times 2048, and 1535.
    full = 2 + 1_464_843 + 2
    assert packer.bins == full + 2
    assert [packer.pieces(bin) for bin in (0, 1, 2)] == [[(1, 0, 2049)], [(1, 2048, 2049)], [(3, 0, 2049)]]
    assert packer.pieces(2 + 1_464_842) == [(3, 1_464_842 * 2048, 2049)]
    assert packer.pieces(2 + 1_464_843) == [(4, 0, 2049)]
    assert packer.pieces(full) == [(0, 0, 7), (3, 1_464_843 * 2048, 1536)]
    assert packer.pieces(full + 1) == [(4, 4096, 904)]


def test_a_document_of_three_billion_tokens_as_arrays() -> None:
    packing = pack_best_fit([3_000_000_000], 2049)
    assert packing.bins == 1_464_844
    assert int((packing.counts - 1).sum()) == 2_999_999_999
    np.testing.assert_array_equal(packing.starts, np.arange(1_464_844) * 2048)


def test_full_pieces_cost_nothing() -> None:
    # 2^59 bins of 2 tokens, more than any memory could hold one by one.
    packer = _native.BestFitPacker()
    lengths = np.array([2**58 + 1, 1, 2**58 + 1])
    assert packer.count_bins(lengths, 2) == 2**59 + 1
    packer.pack(lengths, 2)
    assert packer.bins == 2**59 + 1
    assert packer.pieces(2**58 - 1) == [(0, 2**58 - 1, 2)]
    assert packer.pieces(2**58) == [(2, 0, 2)]
    assert packer.pieces(2**59 - 1) == [(2, 2**58 - 1, 2)]
    assert packer.pieces(2**59) == [(1, 0, 1)]


# A packer that is used again


@settings(max_examples=100, deadline=None)
@given(st.lists(windows(), min_size=2, max_size=5))
def test_a_packer_remembers_nothing_of_other_windows(several: list[tuple[list[int], int]]) -> None:
    packer = _native.BestFitPacker()
    for lengths, capacity in several:
        window = np.array(lengths, dtype=np.int64)
        packer.pack(window, capacity)
        expected = oracle(lengths, capacity)
        assert packer_bins(packer) == expected
        assert packer.count_bins(window, capacity) == len(expected)
        assert packer.bins == 0


@pytest.mark.parametrize("bin", [-1, 2, 2**62])
def test_a_bin_that_is_not_there(bin: int) -> None:
    packer = _native.BestFitPacker()
    packer.pack(np.array([10, 3]), 10)
    with pytest.raises(IndexError, match=f"there is no bin {bin} among 2"):
        packer.pieces(bin)


def test_a_refused_window_leaves_no_bins() -> None:
    packer = _native.BestFitPacker()
    packer.pack(np.array([30, 3]), 10)
    with pytest.raises(ValueError, match="document 2 has -1 tokens"):
        packer.pack(np.array([30, 3, -1]), 10)
    assert packer.bins == 0
    with pytest.raises(IndexError):
        packer.pieces(0)
    packer.pack(np.array([4]), 10)
    assert packer_bins(packer) == [[(0, 0, 4)]]


def test_threads_share_nothing() -> None:
    windows = [text_lengths(2000, seed) for seed in range(24)]
    expected = [bins_of(pack_best_fit(window, 2049)) for window in windows]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda window: bins_of(pack_best_fit(window, 2049)), windows))
    assert found == expected


def test_threads_at_one_packer_take_turns() -> None:
    packer = _native.BestFitPacker()
    windows = [text_lengths(1000 * (1 + seed % 5), seed) for seed in range(40)]
    expected = [pack_best_fit(window, 2049).bins for window in windows]

    def count_between_other_calls(window: np.ndarray) -> int:
        packer.pack(window, 2049)
        with contextlib.suppress(IndexError):  # where another thread has just counted
            assert all(piece[2] > 0 for piece in packer.pieces(0))
        return packer.count_bins(window, 2049)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count_between_other_calls, windows)) == expected


# Bad input


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([3, -5, 2], 10, "document 1 has -5 tokens; give lengths of 0 or more"),
        ([1, 2], 1, "a capacity of 1 tokens; give 2 to 16777216"),
        ([1, 2], 0, "a capacity of 0 tokens"),
        ([], -3, "a capacity of -3 tokens"),
        ([1, 2], 2**24 + 1, "a capacity of 16777217 tokens"),
        ([2**63 - 1] * 2, 2, "documents up to 0 fill more than .* samples; give a larger capacity"),
        (np.array([2**63 + 5], dtype=np.uint64), 10, "document 0 has -"),
        ([2**60], 2, "Unable to allocate"),
    ],
)
def test_bad_input_is_named(lengths: list[int], capacity: int, message: str) -> None:
    with pytest.raises(DataError, match=f"^best-fit packing: .*{message}"):
        pack_best_fit(lengths, capacity)


@pytest.mark.parametrize("lengths", [[1.5], [[1, 2]], ["3"], [None]])
def test_lengths_that_are_no_integers(lengths: list) -> None:
    with pytest.raises(TypeError, match="lengths must be a one-dimensional array of integers"):
        pack_best_fit(lengths, 10)


# Many documents


def test_time_grows_with_the_documents_alone() -> None:
    # Were any step quadratic, or logarithmic in a long document, these would take hours.
    lengths = text_lengths(500_000, seed=1)
    start = time.perf_counter()
    packing = pack_best_fit(lengths, 2049)
    pack_best_fit(np.ones(500_000, dtype=np.int64), 2**20)
    pack_best_fit(np.arange(500_000), 2**20)
    assert time.perf_counter() - start < 20
    assert packing.efficiency > 0.9999
    assert int((packing.counts - 1).sum()) == int((lengths - 1).sum())
