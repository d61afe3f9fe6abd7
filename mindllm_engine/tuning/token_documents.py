"""Documents that tuning makes of records, written once: token files with masks, found again by a fingerprint.

    <dir>/<source>-<fingerprint>/train.{bin,idx,mask,json}, heldout.*, report.json

`report.json` is written last, so that a folder that has one is complete.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash
from rich.console import Console
from rich.progress import track

from mindllm_engine.corpus.holdout import is_held_out
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.data.atomic_files import exclusive_lock, file_hash, write_atomically
from mindllm_engine.data.loss_mask import SUPERVISED
from mindllm_engine.data.token_file_builder import TokenFileBuilder, token_dtype
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.records import BadRecord

REPORT_FILE = "report.json"

# Of the layout of these files and of what is done to records: a new number makes everything anew.
_VERSION = 1

_BATCH = 1024  # documents appended at a time
_EXAMPLES = 5  # records that were dropped or cut, named in the report
_REASONS = 8  # of each kind, shown to people; a file of something else may have one a line


@dataclass(frozen=True, eq=False)
class Document:
    """A record as tokens.

    Attributes:
        where: file and line.
        key: what equal records have in common, which decides whether it is held out.
        ids: int32[tokens].
        mask: uint8[tokens], see data/loss_mask.py.
        learnt_bytes: the text that is learnt, in bytes of UTF-8.
        cut: why it is shorter than its record; empty where it is not.
    """

    where: str
    key: bytes
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    learnt_bytes: int
    cut: str = ""


@dataclass(frozen=True)
class TooLong:
    """A record that has no place in a sample, and was dropped."""

    where: str
    reason: str


@dataclass
class Counts:
    """Of the training or the held-out part."""

    records: int = 0
    tokens: int = 0
    learnt: int = 0
    """Tokens that are predicted."""
    longest: int = 0
    """Tokens of the longest record."""


@dataclass
class RecordsReport:
    """What became of the records of a source."""

    train: Counts = field(default_factory=Counts)
    heldout: Counts = field(default_factory=Counts)
    bad: dict[str, int] = field(default_factory=dict)
    """Dropped with nothing to learn from: reason -> records."""
    too_long: dict[str, int] = field(default_factory=dict)
    """Dropped for their length."""
    cut: dict[str, int] = field(default_factory=dict)
    """Trained on in part."""
    examples: list[str] = field(default_factory=list)
    """The first of those three, as `file:line: reason`."""
    first_bad: str = ""
    """The first of `bad`."""

    def note(self, kind: dict[str, int], where: str, reason: str) -> None:
        """Count a record of one of the three kinds."""
        kind[reason] = kind.get(reason, 0) + 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{where}: {reason}")
        if kind is self.bad:
            self.first_bad = self.first_bad or f"{where}: {reason}"

    def lines(self, name: str) -> list[str]:
        """The report for people."""
        train, share = self.train, self.train.learnt / max(1, self.train.tokens)
        lines = [
            f"{name}: {train.records:,} records, {train.tokens:,} tokens, {share:.1%} of them learnt; longest "
            f"{train.longest:,}; held out {self.heldout.records:,} records, {self.heldout.learnt:,} learnt tokens"
        ]
        for kind, word in ((self.bad, "dropped"), (self.too_long, "dropped"), (self.cut, "cut")):
            reasons = sorted(kind.items(), key=lambda item: (-item[1], item[0]))
            lines += [f"{name}: {word} {count:,}: {reason}" for reason, count in reasons[:_REASONS]]
            if others := reasons[_REASONS:]:
                lines.append(f"{name}: {word} {sum(count for _, count in others):,}: {len(others):,} other reasons")
        return lines + [f"{name}:   {example}" for example in self.examples]

    @classmethod
    def load(cls, path: Path) -> "RecordsReport":
        """Read a report. Raises DataError if it is damaged."""
        try:
            values = orjson.loads(path.read_bytes())
            train, heldout = (Counts(**values.pop(part)) for part in ("train", "heldout"))
            return cls(train, heldout, **values)
        except (OSError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete its folder to make it anew") from error


@dataclass(frozen=True)
class PreparedRecords:
    """A source's token files."""

    train: str
    heldout: str | None
    """None where no record was held out."""
    report: RecordsReport


def prepare_documents(
    name: str,
    config: TuneConfig,
    tokenizer: TextTokenizer,
    category: str,
    settings: dict[str, Any],
    documents: Callable[[Path], Iterable[Document | BadRecord | TooLong]],
) -> PreparedRecords:
    """The token files of the source `name` of `tuning.records`, made unless they are there.

    Several processes may call this at once: one works, the others wait for it.

    Args:
        category: written in the manifests; one for each kind of documents.
        settings: what, besides the file, the tokenizer and the held-out share, the documents depend on.
        documents: gives those of a file of records.

    Raises:
        DataError: the file is missing or damaged, has a bad record and `tuning.bad_records` is refuse, or nothing in
            it is left to train on.
    """
    tuning = config.tuning
    path = Path(expand_path(tuning.records[name].path))
    folder = (
        Path(expand_path(tuning.dir)) / f"{name}-{_fingerprint(path, tokenizer, tuning.heldout, category, settings)}"
    )
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), lambda: None):
        if not (folder / REPORT_FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            facts = {"lang": tuning.records[name].lang, "category": category}
            report = _write(folder, name, facts, tokenizer, documents(path), tuning.heldout)
            write_atomically(folder / REPORT_FILE, orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))
        report = RecordsReport.load(folder / REPORT_FILE)
    if report.bad and tuning.bad_records == "refuse":
        raise DataError(
            f"{report.first_bad} (the first of {sum(report.bad.values()):,} bad records); mend it, or set "
            "tuning.bad_records to drop"
        )
    if not report.train.records:
        held_out = (
            f"all {report.heldout.records:,} are held out; lower tuning.heldout" if report.heldout.records else ""
        )
        why = "; ".join(filter(None, [held_out, *report.lines(name)[1:]]))
        raise DataError(f"{path}: no record is left to train on; {why or 'it is empty'}")
    for part in ("train", "heldout"):
        if getattr(report, part).records and TokenFile(folder / part).mask is None:
            raise DataError(f"{folder / part}: has lost its mask; delete the folder to make it anew")
    return PreparedRecords(str(folder / "train"), str(folder / "heldout") if report.heldout.records else None, report)


def _fingerprint(path: Path, tokenizer: TextTokenizer, heldout: float, category: str, settings: dict[str, Any]) -> str:
    try:
        content = file_hash(path)
    except OSError as error:
        raise DataError(f"{path}: the records cannot be read: {error.strerror}") from error
    facts = [_VERSION, path.name, content, tokenizer.hash, heldout, category, settings]
    return xxhash.xxh3_64_hexdigest(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))


def _write(
    folder: Path,
    name: str,
    facts: dict[str, str],
    tokenizer: TextTokenizer,
    documents: Iterable[Document | BadRecord | TooLong],
    heldout: float,
) -> RecordsReport:
    report = RecordsReport()

    def builder(part: str, source: str) -> TokenFileBuilder:
        dtype = token_dtype(tokenizer.vocab_size)
        return TokenFileBuilder(
            folder / part, dtype, name=source, tokenizer_hash=tokenizer.hash, vocab_size=tokenizer.vocab_size,
            masked=True, **facts,
        )  # fmt: skip

    with builder("train", name) as train, builder("heldout", f"{name}.heldout") as held_out:
        parts = {"train": _Part(train, report.train), "heldout": _Part(held_out, report.heldout)}
        console = Console(stderr=True)
        title = f"{name}: records to tokens"
        for document in track(documents, title, total=None, console=console, disable=not console.is_terminal):
            if isinstance(document, Document):
                check_document(document, tokenizer)
                parts["heldout" if is_held_out(document.key, heldout) else "train"].append(document)
                if document.cut:
                    report.note(report.cut, document.where, document.cut)
            else:
                kind = report.bad if isinstance(document, BadRecord) else report.too_long
                report.note(kind, document.where, document.reason)
        for part in parts.values():
            part.flush()
    return report


class _Part:
    """Documents on their way to one token file."""

    def __init__(self, builder: TokenFileBuilder, counts: Counts) -> None:
        self._builder = builder
        self._counts = counts
        self._waiting: list[Document] = []

    def append(self, document: Document) -> None:
        counts, tokens = self._counts, len(document.ids)
        counts.records += 1
        counts.tokens += tokens
        counts.learnt += int(np.count_nonzero(document.mask & SUPERVISED))
        counts.longest = max(counts.longest, tokens)
        self._waiting.append(document)
        if len(self._waiting) == _BATCH:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._builder.append_many(
                np.concatenate([document.ids for document in self._waiting]),
                np.array([len(document.ids) for document in self._waiting]),
                sum(document.learnt_bytes for document in self._waiting),
                np.concatenate([document.mask for document in self._waiting]),
            )
            self._waiting = []


def check_document(document: Document, tokenizer: TextTokenizer) -> None:
    """Refuse what must never be trained on, whatever a template or a record makes of it.

    Raises:
        DataError: nothing is learnt, it does not end in `</s>`, or a `</s>` (but for a first symbol, where the
            tokenizer has one for both ends) is not learnt.
    """
    learnt = (document.mask & SUPERVISED).astype(bool)
    if not learnt.any():
        raise DataError(f"{document.where}: no token of it is learnt; the template masks everything")
    ends = document.ids == tokenizer.eos_id
    if not ends[-1]:
        raise DataError(f"{document.where}: does not end in </s>")
    if (ends[1:] & ~learnt[1:]).any():
        raise DataError(
            f"{document.where}: a </s> in it is not learnt, so that answers would not end; change tuning.template"
        )
