"""All of ../shared/data/pretrain with 5 % planted faults through the whole pipeline: how fast each step is, what is
caught, what is lost (corpus_planted_score.py), by SimHash and by MinHash."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from benchmarks.corpus_planted import plant, read_clean, read_items, read_words, write_corpus
from benchmarks.corpus_planted_score import describe, every_example_kept, score
from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.build import BuildConfig, build_corpus
from mindllm_engine.corpus.steps.sensitive_words import DEFAULT_VOCABULARY

ROOT = Path(__file__).parent.parent
SHARE, SEED = 0.05, 0

Row = dict[str, Any]


def rows(data: Path, work: Path) -> Iterator[Row]:
    """Rows of the committed configuration over planted text.

    Args:
        data: folder of pretrain and eval.
        work: an empty folder, for some 200 MB.
    """
    documents = read_clean(data / "pretrain")
    planted = plant(documents, read_items(data / "eval"), read_words(DEFAULT_VOCABULARY), SHARE, SEED)
    write_corpus(documents, planted, work, SEED)
    size = sum(len(record["text"].encode()) for records in documents.values() for record in records)
    count = sum(map(len, documents.values()))
    for workers in (2, 1):
        config = config_of(data, work, f"workers_{workers}", workers)
        begin = time.perf_counter()
        with every_example_kept() if workers == 1 else contextlib.nullcontext():
            build_corpus(config)
        seconds = time.perf_counter() - begin
        yield speed_row(f"end to end, {workers} workers", count, size, seconds)
    alone = work / "workers_1"
    yield from step_rows(alone)
    yield from named("SimHash", score(work, alone))
    minhash = config_of(data, work, "minhash", 1)
    minhash.near_duplicates.method = "minhash"
    with every_example_kept():
        build_corpus(minhash)
    found = score(work, work / "minhash")
    yield from named("MinHash", [row for row in found if "near-duplicate" in row["name"] or ": all" in row["name"]])


def config_of(data: Path, work: Path, name: str, workers: int) -> BuildConfig:
    """configs/corpus/paper.yaml over the planted text."""
    arguments = ["--config", str(ROOT / "configs/corpus/paper.yaml"), "--dir", str(work / name)]
    config = parse_arguments(BuildConfig, "", arguments)
    config.executor.workers = workers
    for source in config.sources.values():
        source.path = str(work / "pretrain" / Path(source.path).name)
    for file in config.decontamination.files:
        file.path = str(data / "eval" / Path(file.path).name)
    return config


def step_rows(corpus: Path) -> Iterator[Row]:
    """Documents and MB a second of each step, by datatrove's clocks around what one document takes."""
    ledgers = [orjson.loads(path.read_bytes())["ledger"] for path in sorted(corpus.glob("[1d]*/*/*.ledger.json"))]
    for stage in ("1_cleaned", "3_documents"):
        for step in orjson.loads((corpus / "logs" / stage / "stats.json").read_bytes()):
            name, seconds = step["name"].removeprefix("corpus: "), (step.get("time_stats") or {}).get("total", 0.0)
            entries = [ledger[name] for ledger in ledgers if name in ledger]
            if entries and seconds:
                documents, chars = (sum(entry[key] for entry in entries) for key in ("documents", "chars"))
                yield speed_row(f"step: {name}", documents, chars, seconds, "millions of characters")


def speed_row(name: str, documents: int, size: int, seconds: float, of: str = "MB") -> Row:
    return {
        "name": name, "unit": f"{of} a second", "ours": size / seconds / 1e6, "peer": None, "peer_name": "none",
        "ratio": None, "bar": None, "holds": None, "reason": f"{documents / seconds:,.0f} documents a second",
    }  # fmt: skip


def named(method: str, found: list[Row]) -> Iterator[Row]:
    """Rows of the score, with the kind of near-duplicate search in their names."""
    for row in found:
        how = describe(row).split("\n")[0]
        yield {**row, "name": f"{method}: {row['name']}", "reason": " ".join(how.removeprefix(row["name"]).split())}
