"""The search for near-duplicates against comparing all pairs; memory, interruption, and files that are wrong."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.near_duplicates import (
    DUPLICATE,
    EXACT_COPY,
    NearDuplicatesConfig,
    find_duplicates,
    make_signer,
    read_duplicates,
)
from mindllm_engine.errors import ConfigError, DataError
from tests.corpus.signature_records import close_pairs, earliest, found_in, write_records

MIB = 1 << 20
SIMHASH = NearDuplicatesConfig()


def search(
    folder: Path, signatures: np.ndarray, cuts: list[int], distance: int = 3, memory: int = 64 * MIB
) -> tuple[list[int], bytes]:
    """What is found in signatures cut into files at `cuts`, and all files that were written."""
    config = NearDuplicatesConfig(distance=distance)
    parts = np.split(signatures, cuts)
    paths = [write_records(folder / f"{number}.signatures", config, part) for number, part in enumerate(parts)]
    counts = find_duplicates(config, paths, folder / "found", memory)
    found = found_in(folder / "found", [len(part) for part in parts])
    assert counts.documents == len(signatures)
    assert counts.exact + counts.near == sum(place != first for place, first in enumerate(found))
    written = b"".join((folder / "found" / f"{number}.duplicates").read_bytes() for number in range(len(parts)))
    return found, written


def around(centres: int, documents: int, flips: int, seed: int) -> np.ndarray:
    """Random signatures, each with up to so many bits flipped from one of the centres."""
    random = np.random.default_rng(seed)
    bases = random.integers(0, 1 << 64, centres, dtype=np.uint64)
    chosen = bases[random.integers(0, centres, documents)]
    for _ in range(flips):
        flip = np.uint64(1) << random.integers(0, 64, documents, dtype=np.uint64)
        chosen = np.where(random.random(documents) < 0.6, chosen ^ flip, chosen)
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    bits=st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=5)), min_size=1, max_size=60),
    distance=st.integers(0, 7),
    data=st.data(),
)
def test_a_few_signatures_as_by_brute_force(
    bits: list[tuple[int, set[int]]], distance: int, data: st.DataObject
) -> None:
    signatures = np.array(
        [base * 0x1111_1111_1111_1111 ^ sum(1 << b for b in flips) for base, flips in bits], np.uint64
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(bits)), max_size=4)))
    with tempfile.TemporaryDirectory() as folder:
        found, _ = search(Path(folder), signatures, cuts, distance)
    assert found == earliest(len(bits), close_pairs(signatures, distance))


def few_bits(bits: int) -> np.ndarray:
    """Every signature with ones in the lowest bits only, spread over the 64."""
    spread = np.zeros(1 << bits, np.uint64)
    for bit in range(bits):
        ones = np.arange(1 << bits, dtype=np.uint64) >> np.uint64(bit) & np.uint64(1)
        spread |= ones << np.uint64(bit * 64 // bits)
    return spread


CASES = {
    "random": np.random.default_rng(1).integers(0, 1 << 64, 5000, dtype=np.uint64),
    "random and repeated": around(3000, 5000, 0, 1),
    "clusters": around(400, 5000, 5, 2),
    "large clusters": around(5, 4000, 8, 3),
    "sparse ones": around(1, 3000, 30, 4) & around(1, 3000, 30, 5),
    "one block alike": around(3000, 3000, 0, 6) & np.uint64(0xFFFFFFFFFFFF),
    "far apart by one bit each": np.array([1 << bit for bit in range(64)], np.uint64),
    # Of 12 bits at distance 4 each: nothing is near, though all agree in most blocks.
    "repeated codes": np.array([sum(0xF << 4 * b for b in range(12) if n >> b & 1) for n in range(4096)], np.uint64),
    "equal": np.full(3000, 7, np.uint64),
}


@pytest.mark.parametrize("distance", [0, 2, 3, 6])
@pytest.mark.parametrize("name", CASES)
def test_thousands_of_signatures_as_by_brute_force(name: str, distance: int, tmp_path: Path) -> None:
    signatures = CASES[name]
    found, _ = search(tmp_path, signatures, [10, 10, len(signatures) // 2], distance)
    assert found == earliest(len(signatures), close_pairs(signatures, distance))


@pytest.mark.parametrize(
    "signatures",
    [
        around(30_000, 150_000, 4, 7),
        # All agree in 48 bits: what does not fit in memory after one block is cut again, on the disk.
        np.random.default_rng(8).permutation(few_bits(16)) ^ np.uint64(0xABCDEF),
        np.concatenate(
            [np.random.default_rng(9).permutation(few_bits(17))[:90_000] << np.uint64(1), around(9, 9, 0, 1)]
        ),
    ],
)
def test_little_memory_gives_the_same_bytes(signatures: np.ndarray, tmp_path: Path) -> None:
    results = []
    for memory in (1 << 30, 3 * MIB, MIB):
        folder = tmp_path / str(memory)
        folder.mkdir()
        results.append(search(folder, signatures, [1000, 70_000], memory=memory))
        assert not [path for path in (folder / "found").iterdir() if path.suffix != ".duplicates"]
    assert results[0] == results[1] == results[2]
    assert results[0][1]


def test_all_pairs_near_are_joined_when_on_the_disk(tmp_path: Path) -> None:
    """Every signature of 16 bits has neighbours at distance 1: one cluster."""
    signatures = np.random.default_rng(8).permutation(few_bits(16))
    found, _ = search(tmp_path, signatures, [], memory=MIB, distance=1)
    assert set(found) == {0}


def test_a_million_equal_signatures_take_linear_time(tmp_path: Path) -> None:
    others = np.random.default_rng(11).integers(0, 1 << 64, 3000, dtype=np.uint64)
    signatures = np.concatenate([others, np.full(1_000_000, 42, np.uint64)])
    started = time.monotonic()
    found, _ = search(tmp_path, signatures, [500_000])
    assert time.monotonic() - started < 20
    assert set(found[3000:]) == {3000}
    assert found[:3000] == list(range(3000))


def test_records_tell_distance_and_exact_copies(tmp_path: Path) -> None:
    signatures = np.array([0, 0, 0, 1, 7], np.uint64)
    texts = np.array([5, 6, 5, 5, 8], np.uint64)
    paths = [
        write_records(tmp_path / "a", SIMHASH, signatures[:1], texts[:1]),
        write_records(tmp_path / "b", SIMHASH, signatures[1:], texts[1:]),
    ]
    counts = find_duplicates(SIMHASH, paths, tmp_path / "found", MIB)
    assert (counts.documents, counts.exact, counts.near) == (5, 2, 2)
    assert len(read_duplicates(tmp_path / "found" / "0.duplicates")) == 0
    # Equal signatures of other texts are near-duplicates; equal texts are copies.
    expected = [(0, 0, 0, 0), (1, 0, 0, EXACT_COPY), (2, 0, 0, EXACT_COPY), (3, 0, 0, 3)]
    assert read_duplicates(tmp_path / "found" / "1.duplicates").tolist() == expected


@pytest.mark.parametrize("memory", [64 * MIB, MIB])
@pytest.mark.parametrize("seed", range(3))
def test_minhash_as_by_brute_force(seed: int, memory: int, tmp_path: Path) -> None:
    config = NearDuplicatesConfig(method="minhash", hashes=24, bands=6, similarity=0.6)
    random = np.random.default_rng(seed)
    bases = random.integers(0, 1 << 32, (200, 24), dtype=np.uint32)
    values = bases[random.integers(0, 200, 3000)]
    values = np.where(random.random(values.shape) < random.choice([0.0, 0.1, 0.3, 0.5], (3000, 1)), 9, values)
    values = np.where(values == 9, random.integers(0, 1 << 32, values.shape, dtype=np.uint32), values).astype(np.uint32)
    pairs = []
    for i in range(3000):
        equal = values[i + 1 :] == values[i]
        band = equal.reshape(-1, 6, 4).all(axis=2).any(axis=1)
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(band & (equal.sum(axis=1) >= 0.6 * 24 - 1e-6))]
    paths = [write_records(tmp_path / str(n), config, part) for n, part in enumerate(np.split(values, [1200, 1200]))]
    counts = find_duplicates(config, paths, tmp_path / "found", memory)
    found = found_in(tmp_path / "found", [1200, 0, 1800])
    assert found == earliest(3000, pairs)
    assert counts.near == sum(place != first for place, first in enumerate(found)) > 500
    for ordinal, kept_file, kept_ordinal, distance in read_duplicates(tmp_path / "found" / "2.duplicates").tolist():
        kept = kept_ordinal + (1200 if kept_file else 0)
        assert distance == int((values[1200 + ordinal] != values[kept]).sum())


def test_minhash_of_a_bucket_of_unlike_documents_takes_linear_time(tmp_path: Path) -> None:
    """All agree in one band and in nothing else, but for pairs of equal ones."""
    config = NearDuplicatesConfig(method="minhash", hashes=16, bands=4, similarity=0.7)
    values = np.random.default_rng(0).integers(0, 1 << 32, (20_000, 16), dtype=np.uint32)
    values[:, :4] = 1
    values[10_000:] = values[:10_000]
    path = write_records(tmp_path / "a", config, values)
    started = time.monotonic()
    find_duplicates(config, [path], tmp_path / "found", MIB)
    assert time.monotonic() - started < 20
    assert found_in(tmp_path / "found", [20_000]) == [*range(10_000), *range(10_000)]


def test_none_finds_nothing(tmp_path: Path) -> None:
    config = NearDuplicatesConfig(method="none")
    signer = make_signer(config)
    assert (signer.record_bytes, signer.sign("text", "en")) == (0, b"")
    (tmp_path / "a").write_bytes(b"")
    counts = find_duplicates(config, [tmp_path / "a"], tmp_path / "found", MIB)
    assert (counts.documents, counts.exact, counts.near) == (0, 0, 0)
    assert len(read_duplicates(tmp_path / "found" / "0.duplicates")) == 0


@pytest.mark.parametrize("method", ["simhash", "minhash"])
def test_empty_files_and_no_files(method: str, tmp_path: Path) -> None:
    config = NearDuplicatesConfig(method=method)  # type: ignore[arg-type]
    (tmp_path / "a").write_bytes(b"")
    assert find_duplicates(config, [tmp_path / "a"] * 2, tmp_path / "found", MIB).documents == 0
    assert len(read_duplicates(tmp_path / "found" / "1.duplicates")) == 0
    assert find_duplicates(config, [], tmp_path / "none", MIB).documents == 0


def test_a_killed_search_leaves_whole_files_or_none(tmp_path: Path) -> None:
    signatures = around(100_000, 300_000, 3, 12)
    paths = [
        write_records(tmp_path / f"{n}.signatures", SIMHASH, part) for n, part in enumerate(np.split(signatures, 30))
    ]
    find_duplicates(SIMHASH, paths, tmp_path / "peace", 2 * MIB)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "peace").iterdir()}
    folder = tmp_path / "killed"
    script = (
        "import sys; from pathlib import Path; from mindllm_engine.corpus.near_duplicates import *;"
        "print('begin', flush=True);"
        "find_duplicates(NearDuplicatesConfig(), [Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), 2 << 20)"
    )
    command = [sys.executable, "-c", script, str(folder), *map(str, paths)]
    partly = 0
    for delay in (0.05, 0.15, 0.3, 0.5, 0.7, 1.0):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        whole = {p.name: p.read_bytes() for p in folder.glob("*.duplicates")} if folder.exists() else {}
        assert all(expected[name] == data for name, data in whole.items())
        assert not folder.exists() or not list(folder.glob(".spill*"))  # temporary files have no name
        partly += len(whole) < len(expected)
    assert partly > 0
    find_duplicates(SIMHASH, paths, folder, 2 * MIB)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[:-3]
    elif how == "zeros":
        data[400:] = bytes(len(data) - 400)
    else:
        data[407] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("memory", [64 * MIB, MIB])
@pytest.mark.parametrize(("how", "message"), [("cut", "cut short"), ("zeros", "record 20 "), ("bit", "record 20 ")])
def test_a_damaged_file_is_refused_in_one_line(how: str, message: str, memory: int, tmp_path: Path) -> None:
    paths = [write_records(tmp_path / name, SIMHASH, around(50_000, 50_000, 0, 13)) for name in "ab"]
    damaged(paths[1], how)
    with pytest.raises(DataError, match=message) as error:
        find_duplicates(SIMHASH, paths, tmp_path / "found", memory)
    assert str(paths[1]) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "found").iterdir())


def test_signatures_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(make_signer(NearDuplicatesConfig(simhash_words=3)).sign("some text", "en"))
    with pytest.raises(DataError, match="other settings"):
        find_duplicates(SIMHASH, [path], tmp_path / "found", MIB)
    with pytest.raises(DataError, match="other settings"):
        find_duplicates(NearDuplicatesConfig(method="minhash"), [path], tmp_path / "found", MIB)
    # What decides which pairs count is none of the signatures' business.
    assert find_duplicates(NearDuplicatesConfig(simhash_words=3, distance=1), [path], tmp_path / "found", MIB).documents


def test_missing_files_and_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        find_duplicates(SIMHASH, [tmp_path / "absent"], tmp_path / "found", MIB)
    with pytest.raises(DataError, match="not a regular file"):
        find_duplicates(SIMHASH, [tmp_path], tmp_path / "found", MIB)
    path = write_records(tmp_path / "a", SIMHASH, around(10, 10, 0, 1))
    with pytest.raises(DataError, match="cannot be written"):
        find_duplicates(SIMHASH, [path], path / "found", MIB)
    with pytest.raises(DataError, match="cannot be read"):
        read_duplicates(tmp_path / "0.duplicates")
    (tmp_path / "0.duplicates").write_bytes(bytes(DUPLICATE.itemsize + 1))
    with pytest.raises(DataError, match="cut short"):
        read_duplicates(tmp_path / "0.duplicates")


@pytest.mark.parametrize(
    "wrong",
    [
        {"distance": -1},
        {"distance": 8},
        {"simhash_characters": 0},
        {"minhash_words": 100_000},
        {"shortest": -1},
        {"hashes": 0},
        {"bands": 0},
        {"bands": 13},
        {"similarity": 0.0},
        {"similarity": 1.5},
    ],
)
def test_impossible_values_are_refused(wrong: dict[str, float], tmp_path: Path) -> None:
    config = NearDuplicatesConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_signer(config)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        find_duplicates(config, [], tmp_path, MIB)


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory"):
        find_duplicates(SIMHASH, [], tmp_path, MIB - 1)
