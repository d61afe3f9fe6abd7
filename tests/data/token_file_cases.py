"""What the tests of token files share: small files, and the comparison of a file with the documents it should hold."""

from pathlib import Path
from typing import Any

import mindllm_engine._native as _native
import numpy as np

from mindllm_engine.data.token_file_builder import TokenFileBuilder

FACTS: dict[str, Any] = {"name": "web", "lang": "en", "category": "web", "tokenizer_hash": "5eed"}


def flat(documents: list[np.ndarray], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([np.empty(0, dtype), *documents]), np.array([len(d) for d in documents], np.int64)


def build(prefix: Path, documents: list[np.ndarray], dtype: str = "int32", vocab_size: int = 1000) -> None:
    with TokenFileBuilder(prefix, dtype, vocab_size=vocab_size, **FACTS) as builder:
        builder.append_many(*flat(documents, dtype), text_bytes=7 * len(documents))


def contents(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def assert_reads(prefix: Path, documents: list[np.ndarray], dtype: str) -> None:
    reader = _native.TokenFileReader(prefix)
    stream, lengths = flat(documents, dtype)
    assert (reader.documents, reader.tokens, reader.dtype) == (len(documents), len(stream), np.dtype(dtype))
    np.testing.assert_array_equal(reader.lengths, lengths)
    assert reader.lengths.dtype == np.int64
    np.testing.assert_array_equal(reader.read(0, reader.tokens), stream)
    for index, document in enumerate(documents):
        np.testing.assert_array_equal(reader.document(index), document)
