"""Questions to ask: where the real ones lie, and a few of each kind written for the tests."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.evaluation.local_tasks import ARITHMETIC
from tests.real_data import REAL_DATA


@pytest.fixture(scope="session")
def question_data() -> Path:
    """The folder of real data, with the benchmarks in its folder eval."""
    if not (REAL_DATA / "eval").is_dir():
        pytest.skip(f"no benchmarks in {REAL_DATA / 'eval'}: set MINDLLM_DATA to the folder above")
    return REAL_DATA


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """JSON lines, gzipped where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def sums(task: str, count: int) -> list[dict[str, Any]]:
    """Questions of one arithmetic task, in the shape of the local file."""
    return [
        {"task": task, "context": f"\n\nQ: What is {n} plus {n + 7}?\n\nA:", "completion": f" {2 * n + 7}"}
        for n in range(10, 10 + count)
    ]


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few questions of each local benchmark, written for these tests."""
    folder = tmp_path_factory.mktemp("data")
    english = [
        {
            "subject": subject,
            "question": f"  Which number follows {n}? ",
            "choices": [str(n + 1), str(n), "Neither: " + str(n - 1), "None of these"],
            "answer": "ABCD"[n % 4],
        }
        for subject in ("abstract_algebra", "anatomy")
        for n in range(7)
    ]
    chinese = [
        {
            "subject": subject,
            "question": f"{n} 的下一个数是哪一个？",
            "choices": [f"{n + 1}", f"{n}", "都不是", "以上都对"],
            "answer": "ABCD"[n % 4],
        }
        for subject in ("agronomy", "anatomy", "arts")
        for n in range(6)
    ]
    for name, records in (("mmlu", english), ("cmmlu", chinese)):
        write_lines(folder / "eval" / f"{name}_test.jsonl.gz", records)
        write_lines(folder / "eval" / f"{name}_dev.jsonl.gz", records[::-1])
    arithmetic = [record for task in ARITHMETIC.values() for record in sums(task, 4)]
    write_lines(folder / "eval" / "arithmetic.jsonl.gz", arithmetic)
    problems = [
        {
            "question": f"Ann has {n} pears and buys two. How many?",
            "answer": f"{n} + 2 = <<{n}+2={n + 2}>>\n#### {n + 2}",
        }
        for n in range(8)
    ]
    write_lines(folder / "eval" / "gsm8k_test.jsonl.gz", problems)
    stories = [
        {
            "context": f"Baking bread: Ann bakes {n}. she",
            "label": n % 4,
            "endings": [f"{w} {n}." for w in "abcd"],
        }
        for n in range(8)
    ]
    write_lines(folder / "eval" / "hellaswag_val.jsonl.gz", stories)
    return folder
