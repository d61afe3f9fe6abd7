"""One source of text to token files: `<name>.{bin,idx,json}`, and `<name>.heldout.*` for validation.

Each input file becomes a *part* in `parts/<name>/`, complete once its `.done.json` stands there. A run that was
stopped, however it was stopped, goes on with the files that have no finished part. At the end the parts are joined in
the order of the input, `<name>.source.json` records what was made from what, and the parts are deleted: a source with
that record is finished, one without it is not. Until the parts are deleted, they and the joined files lie side by side.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import xxhash

from mindllm_engine.corpus.document_encoder import EncodedBatch, EncoderSettings, encode_in_order
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.corpus.readers import (
    BATCH_BYTES,
    BadRecords,
    OnBadRecord,
    RawBatch,
    expand_paths,
    read_raw_batches,
)
from mindllm_engine.data.atomic_files import exclusive_lock, file_hash, write_atomically
from mindllm_engine.data.byte_progress import ByteProgress
from mindllm_engine.data.token_file_builder import TokenFileBuilder, token_dtype
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import ConfigError, DataError


@dataclass
class SourceCounts:
    """What became of the records of a source or of one of its files."""

    documents: int = 0
    """Documents for training."""
    tokens: int = 0
    """Their tokens, `<s>` and `</s>` included."""
    text_bytes: int = 0
    """Their text in bytes of UTF-8."""
    heldout_documents: int = 0
    heldout_tokens: int = 0
    heldout_text_bytes: int = 0
    empty_documents: int = 0
    """Dropped, because there was nothing but white space in them."""
    bad_records: BadRecords = field(default_factory=BadRecords)
    """Dropped, by reason."""

    def add_batch(self, batch: EncodedBatch) -> None:
        self.documents += len(batch.train.lengths)
        self.tokens += len(batch.train.tokens)
        self.text_bytes += batch.train.text_bytes
        self.heldout_documents += len(batch.heldout.lengths)
        self.heldout_tokens += len(batch.heldout.tokens)
        self.heldout_text_bytes += batch.heldout.text_bytes
        self.empty_documents += batch.empty_documents
        self.bad_records.merge(batch.bad_records)

    def add(self, later: "SourceCounts") -> None:
        """Add the counts of a file that comes later in the input."""
        for name in (f.name for f in dataclasses.fields(self) if f.name != "bad_records"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.bad_records.merge(later.bad_records)

    @classmethod
    def from_json(cls, values: dict) -> "SourceCounts":
        return cls(**{**values, "bad_records": BadRecords(**values["bad_records"])})


@dataclass
class TokenizedSource:
    """A finished source."""

    name: str
    train_prefix: str
    """The token file is at `<train_prefix>.{bin,idx,json}`."""
    heldout_prefix: str | None
    """None if no document was held out; then there are no such files."""
    counts: SourceCounts
    up_to_date: bool
    """True if it was finished before and nothing had to be done."""

    def summary(self) -> str:
        """One line of counts, for people."""
        counts = self.counts
        line = (
            f"{self.name}: {counts.documents:,} documents, {counts.tokens:,} tokens, {counts.text_bytes:,} bytes of "
            f"text; held out: {counts.heldout_documents:,} documents, {counts.heldout_tokens:,} tokens"
        )
        if counts.empty_documents:
            line += f"; dropped {counts.empty_documents:,} empty documents"
        if counts.bad_records.total:
            line += f"; dropped {counts.bad_records.total:,} bad records: {counts.bad_records.summary()}"
        return line


def check_source_name(name: str) -> None:
    """Raise ConfigError for a name that cannot be a file's, or would be taken for another source's files."""
    if not name or not all(character.isalnum() or character in "._-" for character in name):
        raise ConfigError(f"name is '{name}'; a source's name is of letters, digits, '.', '_' and '-'")
    if name.startswith(".") or name.endswith((".heldout", ".source")):
        raise ConfigError(
            f"name is '{name}'; names do not start with '.' or end in .heldout or .source, which are kept"
        )


def tokenize_source(
    inputs: str | list[str],
    out_dir: str | Path,
    *,
    name: str,
    lang: str,
    category: str,
    tokenizer: TextTokenizer,
    holdout: float = 0.0,
    text_field: str = "text",
    on_bad_record: OnBadRecord = "skip",
    workers: int | None = None,
) -> TokenizedSource:
    """Tokenize the records of `inputs` (paths or globs) into `out_dir`, each as `<s> text </s>`.

    name, lang, category: written in the manifests. holdout: the share of documents to hold out, from 0 to below 1 (see
    DocumentEncoder). on_bad_record: "skip" counts bad records, "error" raises for the first. workers: processes, one
    for each core by default; the output does not depend on it.

    A finished source with the same settings and inputs is left as it is. Several processes may call this at once: one
    works, the others wait for it.

    Raises DataError if an input is missing, empty or damaged, no document is left, or
    `out_dir` holds this source from another tokenizer, other settings or other inputs; ConfigError for a bad argument.
    """
    check_source_name(name)
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}; it is a share of the documents, from 0 to below 1")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; at least 1 process is needed")
    settings = _Settings(name, lang, category, tokenizer.hash, holdout, text_field, on_bad_record)
    source = _Source(Path(out_dir), settings, tokenizer)

    def on_wait() -> None:
        print(f"{name}: another process is tokenizing it; waiting for it", file=sys.stderr, flush=True)

    with exclusive_lock(Path(out_dir) / f".{name}.lock", on_wait):
        finished = source.finished(inputs)
        if finished is not None:
            return finished
        paths = expand_paths(inputs)
        source.make_parts(paths, workers or len(os.sched_getaffinity(0)))
        return source.join_parts(paths)


@dataclass(frozen=True)
class _Settings:
    """What a finished source must agree on with what is asked for."""

    name: str
    lang: str
    category: str
    tokenizer: str
    """The tokenizer's hash."""
    holdout: float
    text_field: str
    on_bad_record: OnBadRecord


@dataclass(frozen=True)
class _InputFile:
    """An input file as it was when it was read."""

    path: str
    size: int
    mtime_ns: int
    xxh3: str

    @classmethod
    def of(cls, path: str) -> "_InputFile":
        stat = os.stat(path)
        return cls(os.path.abspath(path), stat.st_size, stat.st_mtime_ns, file_hash(path))

    def is_unchanged(self, path: str) -> bool:
        stat = os.stat(path)
        if stat.st_size != self.size:
            return False
        # A copied or regenerated file is as good as the first one; only its content counts.
        return stat.st_mtime_ns == self.mtime_ns or file_hash(path) == self.xxh3


class _Source:
    """The files of one source in the output folder. All methods need its lock."""

    def __init__(self, out_dir: Path, settings: _Settings, tokenizer: TextTokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._train = out_dir / settings.name
        self._heldout = out_dir / f"{settings.name}.heldout"
        self._record = out_dir / f"{settings.name}.source.json"
        self._parts = out_dir / "parts" / settings.name

    # -- Is it done? ---

    def finished(self, inputs: str | list[str]) -> TokenizedSource | None:
        """The source if it is finished, None if it is not; DataError if it was made from something else."""
        if not self._record.exists():
            if Path(f"{self._train}.json").exists() and not self._parts.exists():
                raise DataError(
                    f"{self._train}.json exists but was not made by this tool; move it away, or choose another name "
                    "or folder"
                )
            return None
        record = _load_json(self._record)
        difference = self._difference(record, inputs)
        if difference:
            raise DataError(
                f"{self._train}: {difference}; delete {self._record.parent}/{self._settings.name}.* to make it anew, "
                "or choose another name or folder"
            )
        counts = SourceCounts.from_json(record["counts"])
        TokenFile(self._train).check(self._tokenizer.hash)
        if counts.heldout_documents:
            TokenFile(self._heldout).check(self._tokenizer.hash)
        return self._result(counts, up_to_date=True)

    def _difference(self, record: dict, inputs: str | list[str]) -> str:
        for key, asked in dataclasses.asdict(self._settings).items():
            if record["settings"].get(key) != asked:
                return f"was made with {key} {record['settings'].get(key)}, but {asked} is asked for"
        try:
            paths = expand_paths(inputs)
        except DataError:
            return ""  # the raw text may be gone once it is tokenized
        made_from = [_InputFile(**values) for values in record["inputs"]]
        # By name, because a folder of text may move or be mounted elsewhere.
        names_before = [os.path.basename(before.path) for before in made_from]
        names_now = [os.path.basename(path) for path in paths]
        for name in sorted(set(names_before) ^ set(names_now)):
            return f"was made {'from' if name in names_before else 'without'} {name}"
        if len(names_before) != len(names_now):
            return f"was made from {len(names_before)} files, not {len(names_now)}"
        for before, path in zip(made_from, paths, strict=True):
            if not before.is_unchanged(path):
                return f"{path} has changed since"
        return ""

    # -- Parts ---

    def make_parts(self, paths: list[str], workers: int) -> None:
        """Tokenize every input file that has no finished part."""
        pending = [path for path in paths if not self._part_is_finished(path)]
        sizes = [os.path.getsize(path) for path in pending]
        settings = EncoderSettings(
            str(self._tokenizer.model_path),
            self._settings.text_field,
            self._settings.on_bad_record,
            self._settings.holdout,
        )
        # Processes take a second to start, which a small source does not repay.
        workers = max(1, min(workers, sum(sizes) // BATCH_BYTES))
        read_before = [0, *itertools.accumulate(sizes)]
        # As one stream over all files: many small files keep all workers busy, too.
        encoded = encode_in_order(_labelled_batches(pending, self._settings.text_field), settings, workers)
        with contextlib.closing(encoded), ByteProgress(self._settings.name, sum(sizes)) as progress:
            first = next(encoded, None)
            while first is not None:
                index = first[0]
                first = self._make_part(pending[index], first, encoded, progress, read_before[index])

    def _make_part(
        self,
        path: str,
        first: tuple[int, EncodedBatch],
        encoded: Iterator[tuple[int, EncodedBatch]],
        progress: ByteProgress,
        base: int,
    ) -> tuple[int, EncodedBatch] | None:
        """Write the part of the file that `first` belongs to; return the first batch of the next file, if any."""
        input_file = _InputFile.of(path)
        counts = SourceCounts()
        following: tuple[int, EncodedBatch] | None = first
        part = self._part(path)
        part.parent.mkdir(parents=True, exist_ok=True)
        with self._builder(part) as train, self._builder(Path(f"{part}.heldout")) as heldout:
            while following is not None and following[0] == first[0]:
                batch = following[1]
                train.append_many(batch.train.tokens, batch.train.lengths, batch.train.text_bytes)
                heldout.append_many(batch.heldout.tokens, batch.heldout.lengths, batch.heldout.text_bytes)
                counts.add_batch(batch)
                progress.show(base + batch.bytes_read)
                following = next(encoded, None)
        done = {"input": dataclasses.asdict(input_file), "counts": dataclasses.asdict(counts)}
        write_atomically(Path(f"{part}.done.json"), orjson.dumps(done))
        return following

    def _part_is_finished(self, path: str) -> bool:
        done = Path(f"{self._part(path)}.done.json")
        return done.exists() and _InputFile(**_load_json(done)["input"]).is_unchanged(path)

    def _part(self, path: str) -> Path:
        key = orjson.dumps([os.path.abspath(path), dataclasses.asdict(self._settings)])
        return self._parts / xxhash.xxh3_64_hexdigest(key)

    def _builder(self, prefix: Path) -> TokenFileBuilder:
        return TokenFileBuilder(
            prefix,
            token_dtype(self._tokenizer.vocab_size),
            name=self._settings.name + (".heldout" if prefix.name.endswith(".heldout") else ""),
            lang=self._settings.lang,
            category=self._settings.category,
            tokenizer_hash=self._tokenizer.hash,
            vocab_size=self._tokenizer.vocab_size,
        )

    # -- The end ---

    def join_parts(self, paths: list[str]) -> TokenizedSource:
        """Join the finished parts of all input files, write the record and delete the parts."""
        parts = [self._part(path) for path in paths]
        records = [_load_json(Path(f"{part}.done.json")) for part in parts]
        counts = SourceCounts()
        for record in records:
            counts.add(SourceCounts.from_json(record["counts"]))
        if not counts.documents:
            raise DataError(self._why_nothing(paths, counts))
        with self._builder(self._train) as train:
            for part in parts:
                train.append_file(part)
        if counts.heldout_documents:
            with self._builder(self._heldout) as heldout:
                for part in parts:
                    heldout.append_file(f"{part}.heldout")
        else:
            for suffix in (".json", ".idx", ".bin"):  # of a run with another holdout, stopped just here
                Path(f"{self._heldout}{suffix}").unlink(missing_ok=True)
        finished = {
            "settings": dataclasses.asdict(self._settings),
            "inputs": [record["input"] for record in records],
            "counts": dataclasses.asdict(counts),
        }
        write_atomically(self._record, orjson.dumps(finished, option=orjson.OPT_INDENT_2))
        shutil.rmtree(self._parts, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._parts.parent.rmdir()  # unless it holds parts of other sources
        return self._result(counts, up_to_date=False)

    def _why_nothing(self, paths: list[str], counts: SourceCounts) -> str:
        if counts.heldout_documents:
            return f"{paths[0]}: holdout {self._settings.holdout} leaves no document to train on; lower it"
        why = f"{counts.bad_records.summary() or 'no bad records'}, {counts.empty_documents:,} empty documents"
        return f"no text under '{self._settings.text_field}' in {paths[0]}{' and others' * (len(paths) > 1)}: {why}"

    def _result(self, counts: SourceCounts, up_to_date: bool) -> TokenizedSource:
        heldout = str(self._heldout) if counts.heldout_documents else None
        return TokenizedSource(self._settings.name, str(self._train), heldout, counts, up_to_date)


def _labelled_batches(paths: list[str], text_field: str) -> Iterator[tuple[int, RawBatch]]:
    for index, path in enumerate(paths):
        for batch in read_raw_batches(path, text_field):
            yield index, batch


def _load_json(path: Path) -> dict:
    try:
        values = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to make its source anew") from None
    return values
