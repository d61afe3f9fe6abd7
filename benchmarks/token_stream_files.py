"""What benchmarks/token_streams.py reads: token files whose .bin is a hole, a corpus of random ids, real text.

All sides read the same files. Token files hold 16-bit ids and documents of log-normal length with a mean of 503 tokens.
"""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from mindllm_engine import _native
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.token_file_builder import CHUNK_BYTES, TokenFileBuilder
from mindllm_engine.data.token_files import index_checksum

VOCAB, DTYPE, ITEM_BYTES = 50_000, "uint16", 2
MEAN_TOKENS, SIGMA = 503, 1.0
INDEX_BYTES = 20  # of the .idx for each document
DRAWN = 1 << 21  # different lengths; more documents repeat them
PIECE = 8192  # documents written at a time

Lengths = npt.NDArray[np.int64]


def document_lengths(documents: int, seed: int) -> Lengths:
    """Log-normal, at least 1 token. int64[documents]."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, min(documents, DRAWN))
    return np.resize(drawn.astype(np.int64).clip(1), documents)


def unequal_shares(sources: int) -> list[float]:
    """Shares of a whole that fall as 1/rank, as the sizes of a mixture's sources roughly do."""
    ranks = np.arange(1, sources + 1)
    shares: list[float] = (1 / ranks / (1 / ranks).sum()).tolist()
    return shares


def write_hollow_sources(folder: Path, documents: int, shares: list[float]) -> list[Path]:
    """One source for each share: a real .idx and manifest, and a .bin that is all hole and reads as zeros."""
    prefixes = []
    for number, share in enumerate(shares):
        prefix = folder / f"source{number:02}"
        lengths = document_lengths(max(1, round(documents * share)), number)
        _native.write_index(f"{prefix}.idx", DTYPE, lengths)
        tokens = int(lengths.sum())
        with open(f"{prefix}.bin", "wb") as file:
            file.truncate(tokens * ITEM_BYTES)
        _save_manifest(prefix, len(lengths), tokens)
        prefixes.append(prefix)
    return prefixes


def _save_manifest(prefix: Path, documents: int, tokens: int) -> None:
    """The manifest of a .bin of zeros."""
    full, rest = divmod(tokens * ITEM_BYTES, CHUNK_BYTES)
    chunks = [xxhash.xxh3_64_hexdigest(bytes(CHUNK_BYTES))] * full
    if rest:
        chunks.append(xxhash.xxh3_64_hexdigest(bytes(rest)))
    Manifest(
        **source_facts(prefix.name),
        dtype=DTYPE,
        documents=documents,
        tokens=tokens,
        text_bytes=0,
        chunk_bytes=CHUNK_BYTES,
        chunks=chunks,
        index_checksum=index_checksum(prefix),
    ).save(prefix)


def source_facts(name: str) -> dict[str, Any]:
    """What a manifest says of a source of these benchmarks."""
    return {"name": name, "lang": "en", "category": "web", "tokenizer_hash": "0" * 16, "vocab_size": VOCAB}


def write_random_corpus(prefix: Path, documents: int) -> None:
    """A token file of random ids."""
    random = np.random.default_rng(0)
    with TokenFileBuilder(prefix, DTYPE, **source_facts(prefix.name)) as builder:
        for start in range(0, documents, PIECE):
            tokens, lengths = random_documents(min(PIECE, documents - start), random)
            builder.append_many(tokens, lengths, 0)


def random_documents(documents: int, random: np.random.Generator) -> tuple[npt.NDArray[np.uint16], Lengths]:
    """Documents back to back: ids uint16[tokens], lengths int64[documents]."""
    lengths = document_lengths(documents, int(random.integers(1 << 32)))
    return random.integers(0, VOCAB, int(lengths.sum()), dtype=np.uint16), lengths


def drop_from_page_cache(prefixes: list[Path]) -> None:
    """Have the next reading of these token files come from the disk."""
    for prefix in prefixes:
        for suffix in (".idx", ".bin", ".json"):
            descriptor = os.open(f"{prefix}{suffix}", os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def text_folder() -> Path:
    """`$MINDLLM_DATA/pretrain`, which may not exist."""
    return Path(os.environ.get("MINDLLM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "pretrain"


def write_plain_text(language: str, path: Path, scale: float) -> bool:
    """A language's JSON lines in one file, of each source the first `scale` of its lines. False if there are none."""
    inputs = sorted(text_folder().glob(f"{language}_*.jsonl.gz"))
    with path.open("wb") as output:
        for input_path in inputs:
            with gzip.open(input_path) as file:
                lines = file.readlines()
            output.writelines(lines[: max(1, round(len(lines) * scale))])
    return bool(inputs)
