"""The files of a corpus under construction: what is made of each input file, and when it counts as made.

    <dir>/1_cleaned/<source>/<file>.jsonl.zst      documents after stage 1
                                   .signatures     a record for each of them, for near-duplicates
                                   .ledger.json    what became of the documents, and the fingerprint
    <dir>/2_duplicates/<number>.duplicates         what stage 3 drops of each, in the order of all files
    <dir>/documents/<source>/<file>.jsonl.zst      the clean corpus, with .ledger.json

A ledger is written last. It holds a fingerprint of all that decides the output: the input file, the settings of this
stage and of those before it. An output whose ledger has another fingerprint, or none, is made anew; so a run that was
stopped goes on, a second run does nothing, and a changed threshold repeats what depends on it and no more.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import xxhash
import zstandard

from mindllm_engine.corpus.ledger import Ledger
from mindllm_engine.data.atomic_files import cannot_write, write_atomically

CLEANED, DUPLICATES, DOCUMENTS = "1_cleaned", "2_duplicates", "documents"
_COMPRESSION_LEVEL = 3


@dataclass(frozen=True)
class WorkFile:
    """One input file in one stage.

    Attributes:
        number: its place among all input files; of near-duplicates, the copy in the first of them stays.
        source: its source's name.
        path: what is read.
        output: path of what is written, without suffix.
        fingerprint: of all that decides what is written.
    """

    number: int
    source: str
    path: str
    output: str
    fingerprint: str

    @property
    def documents_path(self) -> Path:
        return Path(f"{self.output}.jsonl.zst")

    @property
    def signatures_path(self) -> Path:
        return Path(f"{self.output}.signatures")

    @property
    def ledger_path(self) -> Path:
        return Path(f"{self.output}.ledger.json")


def fingerprint(*parts: Any) -> str:
    """xxh3_128 of plain data."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))


def is_up_to_date(file: WorkFile) -> bool:
    """Whether the output is there and made of the same input with the same settings."""
    return read_ledger_file(file.ledger_path).get("fingerprint") == file.fingerprint


def read_ledger_file(path: Path) -> dict[str, Any]:
    """What `FileOutput` wrote: fingerprint, ledger, written; empty where there is none, or half of one."""
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return data if isinstance(data, dict) else {}


@dataclass
class Written:
    """What an output holds; bytes of the texts in UTF-8."""

    documents: int = 0
    chars: int = 0
    bytes: int = 0

    def add(self, documents: int, chars: int, size: int) -> None:
        self.documents += documents
        self.chars += chars
        self.bytes += size


class FileOutput:
    """Writes the output of one file after the other; nothing shows under its name before it is complete.

    The steps of a pipeline share one, and its ledger: the reader begins and finishes files, the writer at the end adds
    documents.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.file: WorkFile | None = None
        self.written: dict[str, Written] = {}
        self.raw: Any = None
        self.documents: Any = None
        self.signatures: BinaryIO | None = None

    def begin(self, file: WorkFile, with_signatures: bool = False) -> None:
        """Raises DataError where the folder cannot be written."""
        self.file, self.written = file, {}
        self.ledger.clear()
        try:
            file.documents_path.parent.mkdir(parents=True, exist_ok=True)
            file.ledger_path.unlink(missing_ok=True)
            self.raw = staged(file.documents_path).open("wb")
            self.documents = zstandard.ZstdCompressor(_COMPRESSION_LEVEL).stream_writer(self.raw, closefd=False)
            self.signatures = staged(file.signatures_path).open("wb") if with_signatures else None
        except OSError as error:
            raise cannot_write(file.documents_path, error) from error

    def write(self, record: dict[str, Any], lang: str, signature: bytes = b"") -> None:
        """Add a document of a language. Raises DataError where the disk is full."""
        assert self.file is not None
        try:
            self.documents.write(orjson.dumps(record) + b"\n")
            if self.signatures is not None:
                self.signatures.write(signature)
        except OSError as error:
            raise cannot_write(self.file.documents_path, error) from error
        text = record["text"]
        self.written.setdefault(lang, Written()).add(1, len(text), len(text.encode()))

    def finish(self) -> None:
        """Give everything its name, the ledger last. Raises DataError where the disk is full."""
        file = self.file
        assert file is not None
        try:
            self.documents.close()
            publish(self.raw, file.documents_path)
            if self.signatures is not None:
                publish(self.signatures, file.signatures_path)
        except OSError as error:
            raise cannot_write(file.documents_path, error) from error
        written = {lang: vars(self.written[lang]) for lang in sorted(self.written)}
        done = {"fingerprint": file.fingerprint, "ledger": self.ledger.to_json(), "written": written}
        write_atomically(file.ledger_path, orjson.dumps(done))
        self.file = None


def publish(written: BinaryIO, path: Path) -> None:
    """Close a file that was written as `staged(path)`, see it to the disk, and give it its name."""
    written.flush()
    os.fsync(written.fileno())
    written.close()
    os.replace(staged(path), path)


def staged(path: Path) -> Path:
    """Where a file is written until it is complete; what a killed run leaves there is overwritten."""
    return path.with_name(f".{path.name}.tmp")
