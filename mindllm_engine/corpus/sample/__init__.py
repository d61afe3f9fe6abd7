"""The sample corpus: a few megabytes of English and Chinese text made by rule from a seed, for demos and tests.

It ships as a generator, not as data. Each source is one function that yields documents without end (arithmetic.py,
qa.py, encyclopedia.py, story.py, dialogue.py, parallel.py, code.py, technology.py) from tables of facts and wordings
(tables_*.py); here they are written to JSON-lines files, one a source, until each has its size. The text is original
to this project, but for `en_technology`, which quotes the documentation of the Python that runs it.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.corpus.sample.arithmetic import en_arithmetic, zh_arithmetic
from mindllm_engine.corpus.sample.code import en_code
from mindllm_engine.corpus.sample.dialogue import zh_dialogue
from mindllm_engine.corpus.sample.encyclopedia import en_encyclopedia, zh_encyclopedia
from mindllm_engine.corpus.sample.parallel import parallel_zh_en
from mindllm_engine.corpus.sample.qa import en_qa, zh_qa
from mindllm_engine.corpus.sample.story import en_story, zh_story
from mindllm_engine.corpus.sample.technology import en_technology
from mindllm_engine.errors import DataError


@dataclass(frozen=True)
class SourceSpec:
    """One source of the sample corpus, before it is written."""

    name: str
    lang: str
    """`en` or `zh`. `parallel_zh_en` holds both and counts as `zh`."""
    category: str
    target_bytes: int
    """Documents are added until their text reaches this many bytes of UTF-8."""
    generate: Callable[[random.Random], Iterator[str]]


@dataclass(frozen=True)
class SampleSource:
    """One source of the sample corpus, as written."""

    lang: str
    category: str
    path: Path
    documents: int
    bytes: int
    """UTF-8 bytes of the documents' text, without the JSON around it."""


SOURCES = (
    SourceSpec("en_arithmetic", "en", "arithmetic", 240_000, en_arithmetic),
    SourceSpec("en_code", "en", "code", 300_000, en_code),
    SourceSpec("en_encyclopedia", "en", "encyclopedia", 320_000, en_encyclopedia),
    SourceSpec("en_qa", "en", "qa", 260_000, en_qa),
    SourceSpec("en_story", "en", "story", 400_000, en_story),
    SourceSpec("en_technology", "en", "technology", 350_000, en_technology),
    SourceSpec("parallel_zh_en", "zh", "parallel", 320_000, parallel_zh_en),
    SourceSpec("zh_arithmetic", "zh", "arithmetic", 240_000, zh_arithmetic),
    SourceSpec("zh_dialogue", "zh", "dialogue", 300_000, zh_dialogue),
    SourceSpec("zh_encyclopedia", "zh", "encyclopedia", 320_000, zh_encyclopedia),
    SourceSpec("zh_qa", "zh", "qa", 260_000, zh_qa),
    SourceSpec("zh_story", "zh", "story", 400_000, zh_story),
)


def write_sample_corpus(folder: str | Path, seed: int) -> dict[str, SampleSource]:
    """Write `<folder>/<name>.jsonl` for every source and return what was written, by name.

    Records are `{"id", "text", "lang", "category", "source"}`, one a line. The same seed gives the same bytes in every
    process (for `en_technology`: with the same version of Python). Each file appears complete or not at all.

    Raises:
        DataError: the folder or a file in it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {spec.name: _write_source(folder, spec, seed) for spec in SOURCES}
    except OSError as error:
        raise DataError(f"{folder}: cannot write the sample corpus: {error.strerror}; choose another folder") from error


def _documents(spec: SourceSpec, seed: int) -> Iterator[str]:
    """The documents of a source, without exact duplicates, until their text reaches the target size."""
    seen: set[str] = set()
    size = 0
    for text in spec.generate(random.Random(f"{seed}-{spec.name}")):
        if text not in seen:
            seen.add(text)
            size += len(text.encode())
            yield text
        if size >= spec.target_bytes:
            return


def _write_source(folder: Path, spec: SourceSpec, seed: int) -> SampleSource:
    path = folder / f"{spec.name}.jsonl"
    temporary = folder / f".{spec.name}.jsonl.{os.getpid()}.tmp"
    documents = size = 0
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for text in _documents(spec, seed):
                record = {
                    "id": f"{spec.name}-{documents:05d}",
                    "text": text,
                    "lang": spec.lang,
                    "category": spec.category,
                    "source": spec.name,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                documents += 1
                size += len(text.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return SampleSource(spec.lang, spec.category, path, documents, size)
