"""Reads JSON lines, plain, gzipped or zstandard, with the file and line of each, for messages about it."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from mindllm_engine.errors import DataError


def read_json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(file and line, what the line holds) of a file of JSON lines; a line that is no JSON comes as None. Blank lines
    are passed over. Raises DataError if the file is missing or damaged."""
    path = Path(path)
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        content = orjson.loads(line)
                    except orjson.JSONDecodeError:
                        content = None
                    yield f"{path.name}:{number}", content
    except (OSError, EOFError) as error:
        after = f" after line {number}" if number else ""
        raise DataError(f"{path}: cannot be read{after}: {getattr(error, 'strerror', None) or error}") from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import zstandard

        return io.BufferedReader(zstandard.open(path, "rb"))
    return path.open("rb")
