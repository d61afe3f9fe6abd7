"""Does the text taken from pages agree with what a person marked, as well as the libraries' own, and what does it cost
to do it in a child process?

    python benchmarks/corpus.py --only extraction

181 news pages whose articles a person marked (`html/articles.jsonl.gz` of DIR). Word F1 is the mean over pages of the
harmonic mean of precision and recall of words, as multisets. Sides take turns; of each the best time is taken.
What the child process costs is told in processor time of both processes, since on a busy machine a parent that waits
for its child waits for others as well.
"""

import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Extract = Callable[[str], str]

_WORD = re.compile(r"\w+")


def rows(data: Path, repetitions: int = 3) -> list[Row]:
    """F1, pages a second, and microseconds a page that the child process costs, for both extractors."""
    path = data / "html" / "articles.jsonl.gz"
    if not path.is_file():
        return [row("extraction", "F1", None, None, "none", None, reason=f"no pages in {path}")]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        pages = [json.loads(line) for line in file]
    found: list[Row] = []
    for name, peer_name, default, same in peers():
        found += rows_of(name, peer_name, default, same, pages, repetitions)
    return found


def peers() -> list[tuple[str, str, Extract, Extract]]:
    """Of each extractor: its name, the peer's, the library as it comes, and with the options that ours has."""
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    def resiliparse_same(html: str) -> str:
        return str(extract_plain_text(html, main_content=True, alt_texts=False, comments=False, post_meta=False))

    def trafilatura_same(html: str) -> str:
        return trafilatura.extract(html, favor_precision=True, include_comments=False) or ""

    return [
        (
            "resiliparse",
            "resiliparse, main_content",
            lambda html: str(extract_plain_text(html, main_content=True)),
            resiliparse_same,
        ),
        (
            "trafilatura",
            "trafilatura, favor_precision",
            lambda html: trafilatura.extract(html, favor_precision=True) or "",
            trafilatura_same,
        ),
    ]


def rows_of(
    name: str, peer_name: str, default: Extract, same: Extract, pages: list[dict[str, str]], repetitions: int
) -> list[Row]:
    """The rows of one extractor."""
    from mindllm_engine.corpus.ledger import Drop
    from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
    from mindllm_engine.corpus.pages.records import Record

    extractor = Extractor(ExtractConfig(extractor=name))  # type: ignore[arg-type]

    def ours(html: str) -> str:
        text = extractor.extract(Record(1, "html", html))
        return "" if isinstance(text, Drop) else text

    sides = {"ours": ours, "default": default, "same": same}
    texts = {side: [extract(page["html"]) for page in pages] for side, extract in sides.items()}  # and warm
    scores = {side: mean_f1(each, pages) for side, each in texts.items()}
    child = extractor.sandbox.child
    assert child is not None
    times = timed(sides, pages, repetitions, child.pid)
    extractor.close()
    rate = {side: len(pages) / min(elapsed for elapsed, _ in each) for side, each in times.items()}
    used = {side: min(processor for _, processor in each) for side, each in times.items()}
    overhead = (used["ours"] - used["same"]) / len(pages) * 1e6
    without = used["same"] / len(pages) * 1e6
    with_options = f"{name} called directly, options as ours"
    return [
        row(f"extraction, {name}: word F1", "F1", scores["ours"], scores["default"], peer_name, 1.0),
        row(f"extraction, {name}: word F1, same options", "F1", scores["ours"], scores["same"], with_options, 1.0),
        row(f"extraction, {name}: pages", "pages/s", rate["ours"], rate["same"], with_options, None),
        row(
            f"extraction, {name}: what the child process adds to a page",
            "us",
            overhead,
            None,
            "none",
            None,
            reason=f"processor time; {without:.0f} us without, {mean_kilobytes(pages):.0f} kB a page",
        ),
    ]


def timed(
    sides: dict[str, Extract], pages: list[dict[str, str]], repetitions: int, child: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and those of processor time of this process and its child, for all pages, of each turn of each side."""
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(repetitions):
        for side, extract in sides.items():
            begin = time.perf_counter(), processor_seconds(child)
            for page in pages:
                extract(page["html"])
            times[side].append((time.perf_counter() - begin[0], processor_seconds(child) - begin[1]))
    return times


def processor_seconds(child: int) -> float:
    """Of this process and one more, since they began."""
    # The clock of a process, as clock_getcpuclockid(3) of Linux makes it from its number.
    return time.process_time() + time.clock_gettime((~child << 3) | 2)


def mean_f1(texts: list[str], pages: list[dict[str, str]]) -> float:
    return sum(word_f1(text, page["article"]) for text, page in zip(texts, pages, strict=True)) / len(pages)


def word_f1(found: str, marked: str) -> float:
    """Harmonic mean of precision and recall of words as multisets, without case."""
    words, expected = (Counter(_WORD.findall(text.lower())) for text in (found, marked))
    common = (words & expected).total()
    return 2 * common / (words.total() + expected.total()) if common else 0.0


def mean_kilobytes(pages: list[dict[str, str]]) -> float:
    return sum(len(page["html"].encode()) for page in pages) / len(pages) / 1e3


def row(
    name: str,
    unit: str,
    ours: float | None,
    peer: float | None,
    peer_name: str,
    bar: float | None,
    reason: str | None = None,
) -> Row:
    """A line of the table; more is better in all rows that have a peer."""
    ratio = ours / peer if ours is not None and peer else None
    holds = None if ratio is None or bar is None else ratio >= bar
    figures = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": bar, "holds": holds}
    return {"name": name, "unit": unit, **figures, "reason": reason}
