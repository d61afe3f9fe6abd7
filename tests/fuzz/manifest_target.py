"""Target `manifest`: any JSON, or none, as the manifest of a token file that may be damaged as well, through TokenFile.

Whatever is wrong must be a DataError of one line. A manifest that loads must keep its types and survive being saved;
the methods of the token file give an answer or a DataError; and nothing right may be refused.
"""

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import numpy as np
import xxhash

from mindllm_engine.data import token_files
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from tests.fuzz.choices import Choices
from tests.fuzz.reader_target import write_pair
from tests.fuzz.targets import Target
from tests.fuzz.token_file_inputs import DATA, NAMES, Index, damage_bytes, data_bytes, valid_index

TEXTS = ["", "web", "int32", "0" * 16, "词", "\n", "\0", "\u2028", "\x1b[2J", "a" * 300, "../x", "%s{}", "-1", "1e3"]
VALUES = [
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e400",
        "1e-400",
        "-0",
        "-0.0",
        "0.0",
        "1.0",
        "5.0",
        "1E3",
        "+1",
        "01",
    ),
    *(
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u0000"',
        '"\\x41"',
        '"\xff"',
        "'a'",
        '"unclosed',
        "tru",
        "null",
        "true",
        "{}",
    ),
    *("[" * 2000, "[" * 1100 + "]" * 1100, '{"a":' * 1100, "[]", "[[]]", '[""]', "[null]", "[1]", '["0",]', "/*x*/1"),
    *("9" * 400, "-" + "9" * 30, "1" + "0" * 5000, "184467440737095516150", f'"{"x" * 5000}"', "", " ", "\ufeff1"),
]
"""What may stand where a value should, JSON or not."""
FIELDS = [*get_type_hints(Manifest), "checksum"]


def seeds() -> list[bytes]:
    """Decisions, each byte for all of them, and one manifest as text."""
    text = right_fields(valid_index(Choices(bytes(range(60)))))
    raw = bytes([1]) + render(list(text.items())).encode()
    return [raw, *(bytes([value]) * 150 for value in range(0, 256, 9)), bytes([1]), bytes([1]) + b"{}"]


def right_fields(index: Index, chunk_bytes: int = 512) -> dict[str, str]:
    """The manifest of a file, each value as JSON."""
    size = data_bytes(index)
    data = DATA[:size].ljust(size, b"\0")
    fields: dict[str, Any] = {
        "name": "web",
        "lang": "en",
        "category": "web",
        "tokenizer_hash": "5eed",
        "vocab_size": 2**16,
        "dtype": NAMES[index.code],
        "documents": len(index.starts) - 1,
        "tokens": sum(index.lengths),
        "text_bytes": 7,
        "chunk_bytes": chunk_bytes,
        "chunks": [xxhash.xxh3_64_hexdigest(data[at : at + chunk_bytes]) for at in range(0, size, chunk_bytes)],
        "index_checksum": xxhash.xxh3_64_hexdigest(index.to_bytes()),
    }
    return {name: json.dumps(value) for name, value in fields.items()}


def small_index(choices: Choices) -> Index:
    """A valid index of data that can be hashed in no time."""
    index = valid_index(choices)
    return index if data_bytes(index) <= len(DATA) else Index(index.code, [], [], [0], 0)


def render(pairs: list[tuple[str, str]]) -> str:
    """A JSON object of `pairs`, in which a name may occur twice."""
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs) + "}"


def some_value(choices: Choices) -> str:
    """JSON, or nearly: of one of the types that fields have, or something else."""
    kind = choices.below(4)
    if kind == 0:
        return json.dumps(choices.of(TEXTS))
    if kind == 1:
        return str(choices.number() * choices.of([1, 1, 1, 2**40]))
    if kind == 2:
        return json.dumps([choices.of(TEXTS) for _ in range(choices.below(5))])
    return choices.of(VALUES)


def damage_fields(choices: Choices, pairs: list[tuple[str, str]]) -> None:
    """Replace a value, give one twice, leave one out, or add one that no manifest has."""
    at = choices.below(len(pairs))
    kind = choices.below(6)
    if kind == 0:
        del pairs[at]
    elif kind == 1:
        pairs.append((choices.of([*FIELDS, *TEXTS]), some_value(choices)))
    else:
        pairs[at] = (pairs[at][0], some_value(choices))


def make(folder: Path) -> Target:
    """The target, which overwrites one token file and its manifest for each input."""
    prefix = folder / "manifest"

    def run(data: bytes) -> None:
        choices = Choices(data)
        index = Index(4, [3, 2], [0, 12], [0, 1, 1, 2], 2)
        kind = choices.below(8)
        if kind == 1:
            content, text, damages = index.to_bytes(), choices.rest(), 1
        else:
            index = small_index(choices)
            pairs = list(right_fields(index, choices.of([512, 128, 8 << 20, 2**62])).items())
            damages = choices.of([1, 0, 1, 2])
            for _ in range(damages):
                damage_fields(choices, pairs)
            content, text = index.to_bytes(), render(pairs).encode(errors="surrogatepass")
            if kind == 2:
                text, damages = damage_bytes(choices, text), 1
            if kind == 3:
                content, damages = damage_bytes(choices, content), 1
        write_pair(prefix, content, data_bytes(index))
        Path(f"{prefix}.json").write_bytes(text)
        Case(whole=damages == 0).use(prefix, choices)

    return run


def check_line(error: DataError) -> None:
    """What a user would read is one line."""
    assert len(str(error).splitlines()) == 1, "more than one line"


class InThisThread(Executor):
    """In the place of threads, which would cost a hundred times the rest, and whose order libFuzzer cannot repeat."""

    def __init__(self, workers: int) -> None: ...

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclasses.dataclass
class Case:
    """One token file with its manifest; nothing of a `whole` one may be refused."""

    whole: bool

    def answer(self, call: Callable[[], Any]) -> Any:
        """What `call` gives, or None for a DataError, which must be one line."""
        try:
            return call()
        except DataError as error:
            assert not self.whole, "what is right was refused"
            check_line(error)
            return None

    def use(self, prefix: Path, choices: Choices) -> None:
        """Open the file and call its methods; of one that does not open, load the manifest, which may be right."""
        file = self.answer(lambda: TokenFile(prefix))
        manifest = file.manifest if file else self.answer(lambda: Manifest.load(prefix))
        if manifest is not None and choices.chance(4):
            self.check_manifest(manifest, prefix.with_name("copy"))
        if file is None:
            return
        lengths = self.answer(lambda: file.lengths)
        for number in range(min(file.documents, 4)):
            document = self.answer(lambda number=number: file.document(number))
            assert lengths is None or len(document) == lengths[number]
        self.answer(lambda: file.check("5eed" if self.whole else choices.of(["5eed", "0ther"]), manifest.vocab_size))
        self.check_verification(file, choices)

    def check_verification(self, file: TokenFile, choices: Choices) -> None:
        """In a whole file nothing is found but ids outside the vocabulary, which is not the one they were made for."""
        vocab_size, size = file.manifest.vocab_size, file.manifest.data_bytes
        ids = np.frombuffer(DATA[:size].ljust(size, b"\0"), file.dtype)
        strays = bool(((ids < 0) | (ids >= vocab_size)).any())
        some = Case(self.whole and not strays)
        with patch.multiple(token_files, ThreadPoolExecutor=InThisThread, _PIECE_BYTES=256):
            found = list(file.find_damage())
        assert bool(found) == strays or not self.whole
        for damage in found:
            check_line(damage)
        for number in file.chunks_of(0, min(file.tokens, 1)):
            some.answer(lambda number=number: file.verify_chunk(number))
        some.answer(lambda: file.verify_ids(vocab_size))
        Case(whole=False).answer(lambda: file.verify_ids(min(vocab_size + choices.below(3), 2**63) - 1))

    def check_manifest(self, manifest: Manifest, copy: Path) -> None:
        """Its fields are of their types, and saving keeps them."""
        for name, kind in get_type_hints(Manifest).items():
            value = getattr(manifest, name)
            assert all(type(item) is str for item in value) if kind == list[str] else type(value) is kind
        manifest.save(copy)
        assert Manifest.load(copy) == manifest
