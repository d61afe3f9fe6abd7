"""Files of any signatures, written independently of the native code, and clusters by brute force."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindllm_engine.corpus.near_duplicates import DUPLICATE, NearDuplicatesConfig, signature_settings

MASK = (1 << 64) - 1


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashes_of_rows(rows: np.ndarray) -> np.ndarray:
    """Of the bytes of each row, a multiple of eight."""
    factor = np.uint64(0x9E3779B97F4A7C15)
    hashes = mix(np.full(len(rows), (rows.shape[1] + int(factor)) & MASK, np.uint64))
    for word in np.ascontiguousarray(rows).view(np.uint64).T:
        hashes = (hashes ^ word) * factor
        hashes ^= hashes >> np.uint64(32)
    return mix(hashes * factor)


def write_records(
    path: Path, config: NearDuplicatesConfig, signatures: np.ndarray, text_hashes: np.ndarray | None = None
) -> Path:
    """signatures: (documents,) of SimHash or (documents, hashes) of MinHash; texts differ if no hashes are given."""
    if not len(signatures):
        path.write_bytes(b"")
        return path
    own = signatures.reshape(len(signatures), -1).view(np.uint8)
    if text_hashes is None:
        text_hashes = np.arange(len(signatures), dtype=np.uint64) + np.uint64(zlib.crc32(path.name.encode()) << 32)
    body = np.hstack([own, text_hashes.reshape(-1, 1).view(np.uint8)])
    checks = mix(hashes_of_rows(body) ^ np.uint64(signature_settings(config))).astype(np.uint32)
    path.write_bytes(np.hstack([body, checks.reshape(-1, 1).view(np.uint8)]).tobytes())
    return path


def close_pairs(signatures: np.ndarray, distance: int) -> list[tuple[int, int]]:
    """All pairs of SimHash signatures at that distance or less, by comparing all of them."""
    pairs = []
    for i in range(len(signatures)):
        differing = np.bitwise_count(signatures[i + 1 :] ^ signatures[i])
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(differing <= distance)]
    return pairs


def earliest(documents: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The first document that each is joined to, by passing the least number on until nothing changes."""
    first = list(range(documents))
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            if first[i] != first[j]:
                first[i] = first[j] = min(first[i], first[j])
                changed = True
    return first


def found_in(folder: Path, counts: Sequence[int]) -> list[int]:
    """What `earliest` gives, by the files of `find_duplicates`; counts: documents of each file."""
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    first = list(range(starts[-1]))
    for number in range(len(counts)):
        records = np.fromfile(folder / f"{number}.duplicates", DUPLICATE)
        assert np.all(np.diff(records["ordinal"].astype(np.int64)) > 0)
        for ordinal, kept_file, kept_ordinal, _ in records.tolist():
            first[starts[number] + ordinal] = starts[kept_file] + kept_ordinal
    return first
