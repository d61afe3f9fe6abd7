"""How fast is the corpus pipeline, step by step, and how good are its filters?

    python benchmarks/corpus.py [--json FILE] [--only PART]...

Parts, each a file of its own:

    end_to_end        corpus_end_to_end.py       all text with 5 % planted faults through every step
    extraction        corpus_extraction.py       word F1 of both extractors on marked pages, pages a second
    cleaning          corpus_cleaning.py         format cleaning, low quality, garbled text, languages
    near_duplicates   corpus_near_duplicates.py  SimHash and MinHash beside `simhash` and datatrove; a million documents
    sensitive         corpus_sensitive.py        65k words beside Aho-Corasick packages; personal data with traps
    repetition        corpus_repetition.py       beside datatrove's Gopher filter; decontamination
    tokenizers        corpus_tokenizers.py       characters a token, extension by Chinese pieces

Real text comes from the folder MINDLLM_DATA (../shared/data). Speeds are of one core unless a name says otherwise.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import (
    corpus_cleaning,
    corpus_end_to_end,
    corpus_extraction,
    corpus_near_duplicates,
    corpus_repetition,
    corpus_sensitive,
    corpus_tokenizers,
)
from benchmarks.token_streams import line, machine

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("MINDLLM_DATA", ROOT / ".." / "shared" / "data")).resolve()
PARTS: dict[str, Callable[[Path, Path], Iterable[dict[str, Any]]]] = {
    "end_to_end": corpus_end_to_end.rows,
    "extraction": lambda data, work: corpus_extraction.rows(data),
    "cleaning": lambda data, work: corpus_cleaning.rows(data),
    "near_duplicates": lambda data, work: corpus_near_duplicates.rows(data),
    "sensitive": lambda data, work: corpus_sensitive.rows(data),
    "repetition": lambda data, work: corpus_repetition.rows(data),
    "tokenizers": lambda data, work: corpus_tokenizers.rows(data / "pretrain", work),
}
PACKAGES = (
    "datatrove", "resiliparse", "trafilatura", "fastwarc", "simhash", "pyahocorasick", "ahocorasick_rs", "ftfy",
    "sentencepiece", "tokenizers",
)  # fmt: skip


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--only", action="append", choices=PARTS, help="these parts; may be given several times")
    arguments = parser.parse_args()
    if not (DATA / "pretrain").is_dir():
        parser.error(f"{DATA}: has no folder pretrain; name the real text by MINDLLM_DATA")
    document: dict[str, Any] = {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
        "rows": [],
    }
    for part in arguments.only or PARTS:
        print(f"{part}:", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=f"corpus_{part}_") as folder:
            for row in PARTS[part](DATA, Path(folder)):
                print(line(row), flush=True)
                document["rows"].append({"part": part, **row})
        if arguments.json:
            arguments.json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
    return 1 if any(row["holds"] is False for row in document["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
