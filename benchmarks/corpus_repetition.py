"""Is the self-repetition filter faster than datatrove's, with the same verdicts, and how fast is decontamination?

    python benchmarks/corpus.py --only repetition

One process, on real text (`MINDLLM_DATA`, ../shared/data by default). datatrove is given our words (csrc/words.hpp)
instead of those of spaCy, whose rules in Python would cost it more. Seconds are of the processor's time, the least of
several turns, in which ours and the peer alternate.
"""

import gzip
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer
from mindllm_engine._native import split_words

from mindllm_engine.corpus.steps.decontamination import (
    Decontamination,
    DecontaminationConfig,
    EvaluationFile,
    read_items,
)
from mindllm_engine.corpus.steps.self_repetition import (
    RepetitionThresholds,
    SelfRepetition,
    SelfRepetitionConfig,
    find_repetition,
)

EVALUATION = {
    "mmlu_test": ["question", "choices"],
    "cmmlu_test": ["question", "choices"],
    "hellaswag_val": ["context"],
    "gsm8k_test": ["question"],
}
PEER_BAR = 5.0


class OurWords(WordTokenizer):
    """For datatrove's filter."""

    def word_tokenize(self, text: str) -> list[str]:
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def read_records(paths: list[Path], megabytes: float) -> list[dict[str, Any]]:
    """So much of each file, from its beginning."""
    records = []
    for path in paths:
        size = 0
        with gzip.open(path) as lines:
            for line in lines:
                if size > megabytes * 1e6:
                    break
                records.append(orjson.loads(line))
                size += len(records[-1]["text"].encode())
    return records


def seconds_of(calls: list[Callable[[], Any]], turns: int) -> list[float]:
    """The least processor time of each call, over turns in which they alternate."""
    least = [float("inf")] * len(calls)
    for _ in range(turns):
        for i, call in enumerate(calls):
            begin = time.process_time()
            call()
            least[i] = min(least[i], time.process_time() - begin)
    return least


def row(name: str, unit: str, ours: float, peer: float | None, peer_name: str, **rest: Any) -> dict[str, Any]:
    ratio = None if peer is None else ours / peer
    bar = rest.pop("bar", None)
    holds = None if bar is None else (ratio if peer is not None else ours) >= bar
    row = {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": bar}
    return row | {"holds": holds, "reason": rest.get("reason")}


def filter_rows(data: Path, turns: int) -> list[dict[str, Any]]:
    """Gopher's filter on English, ours and datatrove's, and how often their verdicts agree."""
    texts = [record["text"] for record in read_records(sorted(data.glob("pretrain/en_*.jsonl.gz")), 1.5)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    gopher, thresholds = GopherRepetitionFilter(language=OurWords()), RepetitionThresholds()
    documents = [Document(text, "document") for text in texts]
    ours = [find_repetition(text, thresholds) is None for text in texts]
    peers = [gopher.filter(document) is True for document in documents]
    agreement = sum(a == b for a, b in zip(ours, peers, strict=True)) / len(texts)
    least = seconds_of(
        [
            lambda: [find_repetition(text, thresholds) for text in texts],
            lambda: [gopher.filter(document) for document in documents],
        ],
        turns,
    )
    what = f"{len(texts):,} English documents, {megabytes:.0f} MB"
    name = "datatrove GopherRepetitionFilter, given our words"
    return [
        row(f"repetition filter, {what}", "MB/s", megabytes / least[0], megabytes / least[1], name, bar=PEER_BAR),
        row(f"same verdicts, {what}", "share", agreement, None, "", bar=1.0, reason=f"compared with {name}"),
    ]


def step_rows(data: Path, turns: int) -> list[dict[str, Any]]:
    """Both steps as a pipeline runs them, by language, without the rest of the pipeline."""
    files = [EvaluationFile(str(data / "eval" / f"{name}.jsonl.gz"), EVALUATION[name]) for name in EVALUATION]
    decontamination = Decontamination(DecontaminationConfig(files=files))
    begin = time.process_time()
    decontamination.load()
    loading = time.process_time() - begin
    assert decontamination.index is not None
    rows = [
        row(
            f"index of {decontamination.index.items:,} evaluation items ({loading:.1f} s to make)",
            "MB of memory",
            decontamination.index.bytes / 1e6,
            None,
            "",
            reason="no peer",
        )
    ]
    for lang in ("zh", "en"):
        records = read_records(sorted(data.glob(f"pretrain/{lang}_*.jsonl.gz")), 3)
        megabytes = sum(len(record["text"].encode()) for record in records) / 1e6
        for step in (SelfRepetition(SelfRepetitionConfig()), decontamination):

            def run(step: Any = step, records: list[dict[str, Any]] = records) -> None:
                for record in records:
                    metadata = {"lang": record["lang"], "category": record["category"]}
                    step.apply(Document(record["text"], record["id"], metadata=metadata))

            (least,) = seconds_of([run], turns)
            for unit, amount in (("MB/s", megabytes), ("documents/s", len(records))):
                what = f"{step.name}, {lang}, {len(records):,} documents, {megabytes:.0f} MB"
                rows.append(row(what, unit, amount / least, None, "", reason="no peer"))
    return rows + recall_rows(data, decontamination, files)


def recall_rows(data: Path, step: Decontamination, files: list[EvaluationFile]) -> list[dict[str, Any]]:
    """Items of each evaluation file put whole into clean documents, 500 each, and clean documents that are dropped."""
    chooser = random.Random(0)
    rows = []
    texts = [record["text"] for record in read_records(sorted(data.glob("pretrain/*.jsonl.gz")), 100)]
    clean = [text for text in texts if step.apply(Document(text, "clean")) is None]
    for file in files:
        items = chooser.sample(list(read_items(file)), 500)
        found = 0
        for item in items:
            text = chooser.choice(clean)[:5000]
            at = chooser.randrange(len(text) + 1)
            found += step.apply(Document(f"{text[:at]}\n{item}\n{text[at:]}", "planted")) is not None
        name = f"items found whole in clean documents, {Path(file.path).name}"
        rows.append(row(name, "share", found / len(items), None, "", bar=0.99, reason="no peer"))
    lost = 1 - len(clean) / len(texts)
    return [*rows, row(f"clean documents dropped, of {len(texts):,}", "share", lost, None, "", reason="no peer")]


def rows(data: Path, turns: int = 3) -> list[dict[str, Any]]:
    """All rows; `data` is the folder with pretrain/ and eval/."""
    return [*filter_rows(data, turns), *step_rows(data, turns)]
