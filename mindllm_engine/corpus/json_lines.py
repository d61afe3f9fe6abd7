"""Reads JSON lines, plain, gzipped or zstandard, with the file and line of each, for messages about it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from mindllm_engine.corpus.readers import decompressed, without_byte_order_mark
from mindllm_engine.errors import DataError


def read_json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(file and line, what the line holds) of a file of JSON lines; a line that is no JSON comes as None. Blank lines
    are passed over. Raises DataError if the file is missing or damaged."""
    name = Path(path).name
    for number, line in read_lines(path):
        yield f"{name}:{number}", parse_line(line)


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of every line of a file that is not blank. Raises DataError if the file is missing or
    damaged."""
    path = Path(path)
    number = 0
    try:
        with path.open("rb") as file:
            chunks = without_byte_order_mark(decompressed(str(path), file))
            for number, line in enumerate(_lines(chunks), start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        after = f" after line {number}" if number else ""
        raise DataError(f"{path}: cannot be read{after}: {error.strerror or error}") from error


def parse_line(line: bytes) -> Any:
    """What a line of JSON holds; None for one that is no JSON."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of a line that has not ended
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    yield b"".join(parts)
