"""How fast is a text cleaned and judged, what does it cost of good text, and how much garbled text is caught?

    python benchmarks/corpus.py --only cleaning

All text of `pretrain/` in DIR, on one core. MB are of UTF-8; of several turns the best is taken. The peer of the format
step is datatrove's formatter, which runs ftfy over every text. Garbled text is made of that text, Chinese sources only
(in an English one there is next to nothing to garble), by decoding it wrongly.
"""

import gzip
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.formatters import FTFYFormatter

from mindllm_engine import _native
from mindllm_engine.corpus.steps.format_cleaning import FormatCleaning, FormatCleaningConfig
from mindllm_engine.corpus.steps.language import identify_language
from mindllm_engine.corpus.steps.low_quality import LowQuality, LowQualityConfig
from mindllm_engine.corpus.steps.mojibake import find_garbled, mend

Row = dict[str, Any]
Texts = dict[str, list[str]]

# Of the real text, sources whose documents are no pages: poems, comments, answers, and pages of manuals.
MIN_LENGTH_OF = {"zh_book": 20, "zh_webtext": 10, "zh_qa": 40, "zh_technology": 5, "zh_math": 30}
# Half of the documents of zh_academic are English, and some of zh_technology.
HALF_ENGLISH = ("zh_academic", "zh_technology")
PEER_TEXTS = 20  # every so manieth goes through ftfy, which takes minutes for all
GARBLED_TEXTS = 10
CP1252 = {byte: bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0xA0)}
KINDS: dict[str, Callable[[str], str]] = {
    "UTF-8 read as Latin-1": lambda text: text.encode().decode("latin-1"),
    "UTF-8 read as Windows-1252": lambda text: text.encode().decode("latin-1").translate(CP1252),
    "UTF-8 read as GBK": lambda text: text.encode().decode("gb18030", errors="replace"),
    "GBK read as Latin-1": lambda text: text.encode("gb18030").decode("latin-1"),
    "GBK read as Windows-1252": lambda text: text.encode("gb18030").decode("latin-1").translate(CP1252),
    "GBK read as UTF-8": lambda text: text.encode("gb18030").decode("utf-8", errors="replace"),
    "GBK read as UTF-8, and that as GBK": lambda text: (
        text.encode("gb18030").decode("utf-8", errors="replace").encode().decode("gb18030", errors="replace")
    ),
}


def rows(data: Path, repetitions: int = 3) -> list[Row]:
    """Speeds, then shares of documents."""
    texts = read(data / "pretrain")
    if not texts:
        return [row("cleaning", "MB/s", None, reason=f"no text in {data / 'pretrain'}")]
    return [*speed_rows(texts, repetitions), *kept_rows(texts), *garbled_rows(texts), language_row(texts)]


def read(folder: Path) -> Texts:
    """The texts of each source."""
    texts: Texts = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts[path.name.split(".")[0]] = [json.loads(line)["text"] for line in file]
    return texts


def speed_rows(texts: Texts, repetitions: int) -> list[Row]:
    """MB and documents a second of the native functions and of the steps, for each language."""
    found = []
    for language in ("zh", "en"):
        sources = {name: each for name, each in texts.items() if name.startswith(language)}
        chosen = list(itertools.chain.from_iterable(sources.values()))
        few = chosen[::PEER_TEXTS]
        sides: dict[str, Callable[[], None]] = {
            "format cleaning in C++": lambda chosen=chosen: each_of(_native.clean_format, chosen),
            "profile in C++": lambda chosen=chosen: each_of(_native.profile_text, chosen),
            "step format cleaning": lambda sources=sources: run_step(format_step, sources),
            "step low quality": lambda sources=sources: run_step(low_quality_step, sources),
        }
        peer_seconds = best(lambda few=few: pass_through(FTFYFormatter(), documents("peer", few)), 1)
        peer = megabytes(few) / peer_seconds
        for name, call in sides.items():
            seconds = best(call, repetitions)
            has_peer = name == "step format cleaning"
            found.append(
                row(
                    f"{name}, {language}",
                    "MB/s",
                    megabytes(chosen) / seconds,
                    peer if has_peer else None,
                    f"datatrove's FTFYFormatter, every {PEER_TEXTS}th text" if has_peer else "none",
                )
            )
            found.append(row(f"{name}, {language}", "documents/s", len(chosen) / seconds))
    return found


def kept_rows(texts: Texts) -> list[Row]:
    """Of each source, the share of documents that both steps keep, and that mending leaves alone."""
    found, touched, total = [], 0, 0
    for source, each in texts.items():
        cleaning, judging = format_step(), low_quality_step()
        kept = sum(1 for _ in judging.run(cleaning.run(iter(documents(source, each)))))
        counts = cleaning.ledger.steps[cleaning.name].counts
        touched += sum(number for what, number in counts.items() if what.startswith("mended"))
        dropped: Counter[str] = Counter()
        for step in (cleaning, judging):
            for words, reason in step.ledger.steps[step.name].dropped.items():
                dropped[words] += reason.documents
        touched += dropped["garbled text"]
        total += len(each)
        reasons = ", ".join(f"{number} {words}" for words, number in dropped.most_common())
        found.append(
            row(f"clean documents kept, {source}", "share", kept / len(each), bar=0.99, reason=reasons or None)
        )
    found.append(row("clean documents not taken for garbled", "share", 1 - touched / total, bar=0.999))
    return found


def garbled_rows(texts: Texts) -> list[Row]:
    """Of each kind, the share of garbled documents that are mended or dropped."""
    limit = FormatCleaningConfig().max_lost_share
    chinese = [text for name, each in texts.items() if name.startswith("zh") for text in each[::GARBLED_TEXTS]]
    chinese = [text for text in chinese if 2 * _native.profile_text(text).han > len(text)]
    found = []
    for kind, garble in KINDS.items():
        outcomes: Counter[str] = Counter()
        for text in chinese:
            garbled = garble(text)
            wrong = find_garbled(garbled, _native.profile_text(garbled), limit)
            mended = mend(garbled, wrong, limit) if wrong else None
            if wrong is None:
                outcomes["missed"] += 1
            elif mended is None:
                outcomes["dropped"] += 1
            else:
                outcomes["mended" if mended == text else "mended but for some characters"] += 1
        caught = 1 - outcomes["missed"] / len(chinese)
        reasons = ", ".join(f"{number} {what}" for what, number in outcomes.most_common())
        found.append(row(f"garbled documents caught, {kind}", "share", caught, bar=0.99, reason=reasons))
    return found


def language_row(texts: Texts) -> Row:
    """How often the language is that of the folder, of the folders in one language."""
    found: Counter[str] = Counter()
    for source, each in texts.items():
        if source not in HALF_ENGLISH:
            for text in each:
                right = identify_language(text, _native.profile_text(text)) == source[:2]
                found["right" if right else source] += 1
    wrong = ", ".join(f"{number} in {source}" for source, number in found.most_common() if source != "right")
    return row(
        "language is that of the folder", "share", found["right"] / found.total(), bar=0.99, reason=f"not: {wrong}"
    )


def format_step() -> FormatCleaning:
    return FormatCleaning(FormatCleaningConfig())


def low_quality_step() -> LowQuality:
    return LowQuality(LowQualityConfig(min_length_of=MIN_LENGTH_OF))


def documents(source: str, texts: list[str]) -> list[Document]:
    return [Document(text, f"{source}/f:{n}", metadata={"source": source}) for n, text in enumerate(texts)]


def run_step(make: Callable[[], FormatCleaning | LowQuality], sources: Texts) -> None:
    for source, texts in sources.items():
        pass_through(make(), documents(source, texts))


def pass_through(step: Any, given: list[Document]) -> None:
    for _ in step.run(iter(given)):
        pass


def each_of(function: Callable[[str], object], texts: Iterable[str]) -> None:
    for text in texts:
        function(text)


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def best(call: Callable[[], None], repetitions: int) -> float:
    """Seconds of the fastest turn: others share this machine."""
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def row(
    name: str,
    unit: str,
    ours: float | None,
    peer: float | None = None,
    peer_name: str = "none",
    bar: float | None = None,
    reason: str | None = None,
) -> Row:
    """A line of the table; more is better. A bar is for the ratio where there is a peer, else for the figure."""
    ratio = ours / peer if ours is not None and peer else None
    judged = ours if peer is None else ratio
    holds = None if judged is None or bar is None else judged >= bar
    figures = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": bar, "holds": holds}
    return {"name": name, "unit": unit, **figures, "reason": reason}
