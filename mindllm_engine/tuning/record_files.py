"""What the preparation of domain data (law.py, finance.py, rationales.py) shares: JSON lines that appear whole, and
samples that do not depend on the order of what they are drawn from."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import orjson
import xxhash

from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError

Item = TypeVar("Item")


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one row a line, all or nothing. Raises DataError if it cannot be written."""
    write_atomically(path, b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))


def write_summary(path: Path, content: dict[str, Any]) -> None:
    """Write counts as JSON to read, all or nothing. Raises DataError if it cannot be written."""
    write_atomically(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def refuse_to_overwrite(sources: Iterable[str | Path], outputs: Iterable[Path]) -> None:
    """Raise ConfigError where a file to write is one of those to read, whose records would be lost."""
    read = {Path(source).resolve() for source in sources}
    for output in outputs:
        if output.resolve() in read:
            raise ConfigError(f"out: {output} is read from, and would be overwritten; choose another out")


def message_rows(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as records hold them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def fill(template: str, **values: str) -> str:
    """A template with its `{name}` replaced; braces in the values, and others in the template, stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda found: values[found[1]], template)


def content_key(*texts: str) -> str:
    """xxh3_128 of texts, which tells records apart by what they say. JSON's quotes keep their borders."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(texts))


def stable_sample(items: list[Item], size: int, key: Callable[[Item], str], seed: int) -> list[Item]:
    """`size` of the items (all, if there are fewer) in their order, chosen by a hash of seed and key: the same ones
    whatever their order, and nearly the same ones when a few items come or go. Keys must differ."""
    ranked = sorted(items, key=lambda item: xxhash.xxh3_128_hexdigest(f"{seed}:{key(item)}".encode()))
    chosen = {key(item) for item in ranked[:size]}
    return [item for item in items if key(item) in chosen]
