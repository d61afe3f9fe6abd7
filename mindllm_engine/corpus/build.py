"""From raw pages to clean documents: the data section of the MindLLM paper (section 2) as three stages.

    1 cleaned      by file: read, extract, clean the format, drop low quality, identify the language; sign
    2 duplicates   all at once: which documents nearly equal earlier ones, of whatever source
    3 documents    by file: drop those; sensitive words, personal data, self-repetition, benchmarks; write
    4 report       all at once

Stages 1 and 3 run in as many tasks as there are files, or fewer; the result is the same.
"""

import os
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from mindllm_engine.corpus.corpus_files import (
    CLEANED,
    DOCUMENTS,
    DUPLICATES,
    FileOutput,
    WorkFile,
    Written,
    fingerprint,
    is_up_to_date,
    read_ledger_file,
)
from mindllm_engine.corpus.executors import ExecutorConfig, Stage, run_stages
from mindllm_engine.corpus.ledger import Ledger
from mindllm_engine.corpus.near_duplicates import NearDuplicatesConfig, find_duplicates, signature_settings
from mindllm_engine.corpus.pages.extract import ExtractConfig
from mindllm_engine.corpus.pages.records import SUFFIXES, ReadConfig
from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.corpus.readers import expand_paths
from mindllm_engine.corpus.report import SourceReport, corpus_report
from mindllm_engine.corpus.steps.decontamination import Decontamination, DecontaminationConfig
from mindllm_engine.corpus.steps.drop_duplicates import DropDuplicates
from mindllm_engine.corpus.steps.format_cleaning import FormatCleaning, FormatCleaningConfig
from mindllm_engine.corpus.steps.low_quality import LowQuality, LowQualityConfig
from mindllm_engine.corpus.steps.personal_data import PersonalData, PersonalDataConfig
from mindllm_engine.corpus.steps.read import ReadCleaned, ReadPages
from mindllm_engine.corpus.steps.self_repetition import SelfRepetition, SelfRepetitionConfig
from mindllm_engine.corpus.steps.sensitive_words import DEFAULT_VOCABULARY, SensitiveWords, SensitiveWordsConfig
from mindllm_engine.corpus.steps.step import CorpusStep
from mindllm_engine.corpus.steps.write import WriteCleaned, WriteDocuments
from mindllm_engine.corpus.tokenize import check_source_name
from mindllm_engine.data.atomic_files import exclusive_lock, file_hash, write_atomically
from mindllm_engine.errors import ConfigError

# Raised when a change of the code changes what it writes: everything is then made anew.
VERSION = 1


@dataclass
class RawSource:
    """The raw files of one source."""

    path: str
    """Glob of its files; `~` and environment variables such as ${MINDLLM_DATA} are expanded."""
    category: str
    """The kind of text, such as book or code (the paper's Table 1)."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Where in a record the text lies."""


@dataclass
class BuildConfig:
    """Raw files, and how they become a clean corpus."""

    dir: str
    """Folder of the corpus. `~` and environment variables are expanded."""
    sources: dict[str, RawSource]
    """By name, in the order of trust: of near-duplicates in several sources, the copy in the first of them stays."""
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    """How text is taken from pages and books."""
    format_cleaning: FormatCleaningConfig = field(default_factory=FormatCleaningConfig)
    """What is removed from within texts."""
    low_quality: LowQualityConfig = field(default_factory=LowQualityConfig)
    """Which texts are too poor."""
    near_duplicates: NearDuplicatesConfig = field(default_factory=NearDuplicatesConfig)
    """Which texts are too much alike."""
    sensitive_words: SensitiveWordsConfig = field(default_factory=SensitiveWordsConfig)
    """Which texts have too many words of a list."""
    personal_data: PersonalDataConfig = field(default_factory=PersonalDataConfig)
    """What is replaced by special tokens."""
    self_repetition: SelfRepetitionConfig = field(default_factory=SelfRepetitionConfig)
    """Which texts repeat themselves too much."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """Which evaluation data must not be in the corpus."""
    memory_gib: float = 2.0
    """What the search for near-duplicates may hold in memory; beyond that it uses the disk."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Where all of this runs."""


@dataclass(frozen=True)
class Plan:
    """All files of a corpus in each stage, in the order of sources and, within one, of their paths."""

    folder: Path
    cleaned: list[WorkFile]
    documents: list[WorkFile]
    duplicates_fingerprint: str

    @property
    def duplicates(self) -> Path:
        return self.folder / DUPLICATES

    @property
    def duplicates_mark(self) -> Path:
        return self.duplicates / "fingerprint"


def build_corpus(config: BuildConfig) -> Path:
    """Make `<dir>/documents` and `<dir>/report.html`, or what of it is not there yet; returns the path of the report.

    Returns at once if all is done. With Slurm it returns when the jobs are submitted.

    Raises ConfigError for an impossible value, DataError for inputs that are missing.
    """
    validate(config)
    plan = make_plan(config)
    report = plan.folder / "report.html"

    def on_wait() -> None:
        say(f"another process is building {plan.folder}; waiting for it")

    with exclusive_lock(plan.folder / ".lock", on_wait):
        stages = stages_to_run(plan, config)
        if stages:
            with progress(plan):
                run_stages(stages, config.executor, plan.folder / "logs")
    return report


def validate(config: BuildConfig) -> None:
    """Raises ConfigError for the first impossible value."""
    if not config.sources:
        raise ConfigError("sources is empty; name one source at least")
    if config.memory_gib <= 0:
        raise ConfigError(f"memory_gib is {config.memory_gib}; it must be positive")
    unknown = set(config.low_quality.min_length_of) - set(config.sources)
    if unknown:
        raise ConfigError(f"low_quality.min_length_of.{min(unknown)}: there is no such source")
    config.executor.validate()
    config.extract.validate()
    config.format_cleaning.validate()
    config.low_quality.validate()
    config.near_duplicates.validate()
    config.sensitive_words.validate()
    for name, source in config.sources.items():
        check_source_name(name)
        source.read.validate()


def make_plan(config: BuildConfig) -> Plan:
    """Find the input files and say what will be made of them."""
    folder = Path(expand_path(config.dir))
    settings = (VERSION, asdict(config.extract), asdict(config.format_cleaning), asdict(config.low_quality))
    cleaned: list[WorkFile] = []
    for name, source in config.sources.items():
        paths = expand_paths(expand_path(source.path), SUFFIXES)
        for path, output_name in zip(paths, output_names(paths), strict=True):
            state = os.stat(path)
            made_of = (settings, asdict(source.read), name, source.category, state.st_size, state.st_mtime_ns)
            signed = signature_settings(config.near_duplicates)
            output = str(folder / CLEANED / name / output_name)
            cleaned.append(WorkFile(len(cleaned), name, path, output, fingerprint(made_of, signed)))
    duplicates = fingerprint([(file.source, file.fingerprint) for file in cleaned], asdict(config.near_duplicates))
    settings_3 = (asdict(config.personal_data), asdict(config.self_repetition))
    lists = [asdict(config.sensitive_words), asdict(config.decontamination)]
    hashes = [file_hash(path) for path in [str(DEFAULT_VOCABULARY), *files_named_in((settings_3, lists))]]
    documents = [
        WorkFile(
            file.number,
            file.source,
            str(file.documents_path),
            str(folder / DOCUMENTS / file.source / Path(file.output).name),
            fingerprint(file.fingerprint, duplicates, settings_3, lists, hashes),
        )
        for file in cleaned
    ]
    return Plan(folder, cleaned, documents, duplicates)


def output_names(paths: list[str]) -> list[str]:
    """A name for each file: its own without suffixes, with a number where two have the same."""
    stems = [Path(path).name.split(".")[0] or "file" for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}_{number:05d}" for number, stem in enumerate(stems)]


def files_named_in(settings: Any) -> list[str]:
    """The files that some settings name, whose content decides as well."""
    if isinstance(settings, dict):
        return [path for value in settings.values() for path in files_named_in(value)]
    if isinstance(settings, list | tuple):
        return [path for value in settings for path in files_named_in(value)]
    if not isinstance(settings, str) or not os.path.isfile(path := expand_path(settings)):
        return []
    return [path]


def stages_to_run(plan: Plan, config: BuildConfig) -> list[Stage]:
    """The first of which something is missing, and all after it."""
    parts = len(plan.cleaned)
    report = plan.folder / "report.html"
    stages = [
        Stage("1_cleaned", cleaning_steps(plan, config), parts, lambda: all(map(is_up_to_date, plan.cleaned))),
        Stage("2_duplicates", [FindDuplicates(plan, config)], 1, lambda: has_duplicates(plan)),
        Stage("3_documents", filtering_steps(plan, config), parts, lambda: all(map(is_up_to_date, plan.documents))),
        Stage("4_report", [WriteReport(plan, config)], 1, report.exists),
    ]
    first = next((number for number, stage in enumerate(stages) if not stage.is_done()), len(stages))
    if first < len(stages):
        report.unlink(missing_ok=True)  # of an earlier corpus
    return stages[first:]


def has_duplicates(plan: Plan) -> bool:
    """Whether the near-duplicates of these very files are known."""
    mark = plan.duplicates_mark
    return mark.exists() and mark.read_text() == plan.duplicates_fingerprint


def cleaning_steps(plan: Plan, config: BuildConfig) -> list[PipelineStep]:
    """Stage 1."""
    output = FileOutput()
    read = {name: source.read for name, source in config.sources.items()}
    categories = {name: source.category for name, source in config.sources.items()}
    steps: list[CorpusStep] = [FormatCleaning(config.format_cleaning), LowQuality(config.low_quality)]
    return [
        ReadPages(plan.cleaned, output, read, categories, config.extract),
        *sharing(output.ledger, steps),
        WriteCleaned(output, config.near_duplicates),
    ]


def filtering_steps(plan: Plan, config: BuildConfig) -> list[PipelineStep]:
    """Stage 3."""
    output = FileOutput()
    steps: list[CorpusStep] = [
        DropDuplicates(plan.duplicates),
        SensitiveWords(config.sensitive_words),
        PersonalData(config.personal_data),
        SelfRepetition(config.self_repetition),
        Decontamination(config.decontamination),
    ]
    return [ReadCleaned(plan.documents, output), *sharing(output.ledger, steps), WriteDocuments(output)]


def sharing(ledger: Ledger, steps: list[CorpusStep]) -> list[CorpusStep]:
    """Let the steps share a ledger."""
    for step in steps:
        step.ledger = ledger
    return steps


class FindDuplicates(PipelineStep):
    """Stage 2, in one task."""

    type = "corpus"
    name = "find duplicates"

    def __init__(self, plan: Plan, config: BuildConfig) -> None:
        super().__init__()
        self.plan, self.config = plan, config

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See datatrove."""
        plan = self.plan
        signatures = [file.signatures_path for file in plan.cleaned]
        memory = int(self.config.memory_gib * 2**30)
        with self.track_time():
            find_duplicates(self.config.near_duplicates, signatures, plan.duplicates, memory)
            write_atomically(plan.duplicates_mark, plan.duplicates_fingerprint.encode())
        return iter(())


class WriteReport(PipelineStep):
    """Stage 4, in one task."""

    type = "corpus"
    name = "write report"

    def __init__(self, plan: Plan, config: BuildConfig) -> None:
        super().__init__()
        self.plan, self.config = plan, config

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See datatrove."""
        with self.track_time():
            corpus_report(source_reports(self.plan, self.config), self.plan.folder / "report.html")
        return iter(())


def source_reports(plan: Plan, config: BuildConfig) -> list[SourceReport]:
    """What became of each source's documents, from the ledgers of all its files."""
    return [
        source_report(
            name,
            source.category,
            [[file for file in files if file.source == name] for files in (plan.cleaned, plan.documents)],
        )
        for name, source in config.sources.items()
    ]


def source_report(name: str, category: str, stages: list[list[WorkFile]]) -> SourceReport:
    """Of one source, from its files in each stage."""
    ledgers = [Ledger(), Ledger()]
    for ledger, files in zip(ledgers, stages, strict=True):
        for file in files:
            ledger.merge(Ledger.from_json(read_ledger_file(file.ledger_path)["ledger"]))
    total, by_language = Written(), dict[str, Written]()
    for file in stages[-1]:
        for lang, part in read_ledger_file(file.ledger_path)["written"].items():
            for written in (total, by_language.setdefault(lang, Written())):
                written.add(part["documents"], part["chars"], part["bytes"])
    return SourceReport(name, category, ledgers, total.documents, total.chars, total.bytes, by_language)


class progress:
    """While entered, a line on stderr about the files done, a few times a minute (a bar on a terminal)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ended = threading.Event()

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def watch(self) -> None:
        """Until the end."""
        seconds = 1.0 if sys.stderr.isatty() else 20.0
        while not self.ended.wait(seconds):
            done = [sum(map(is_up_to_date, files)) for files in (self.plan.cleaned, self.plan.documents)]
            end = "\r" if sys.stderr.isatty() else "\n"
            total = len(self.plan.cleaned)
            line = f"corpus: cleaned {done[0]:,} of {total:,} files, finished {done[1]:,}"
            print(line, end=end, file=sys.stderr, flush=True)


def say(line: str) -> None:
    print(f"corpus: {line}", file=sys.stderr, flush=True)
