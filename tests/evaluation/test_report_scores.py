"""What the report shows of evaluations: each figure with its interval, how it was asked, and damaged results."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.report_scores import evaluation_tables, read_evaluations

SCORE = {"metric": "acc,none", "value": 0.5, "low": 0.25, "high": 0.75, "chance": 0.25, "at_chance": True}
ENTRY = {"task": "a<b", "num_fewshot": 5, "paper": None, "limit": 20}
RESULTS: dict[str, Any] = {
    "checkpoint": "run/step_7",
    "limit": None,
    "chat": "turns",
    "entries": {"a<b": {"settings": {"entry": ENTRY}, "scores": [SCORE | {"questions": 1234}]}},
}


def write(folder: Path, content: bytes, name: str = "local") -> Path:
    path = folder / "evaluation" / name / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_figures_and_how_they_were_asked(tmp_path: Path) -> None:
    write(tmp_path, json.dumps(RESULTS).encode())
    page = "".join(evaluation_tables(read_evaluations(tmp_path), "MindLLM"))
    for text in ("evaluation/local", "run/step_7", "a&lt;b", "1,234", "50.0 %", "25.0 % to 75.0 %", "= chance"):
        assert text in page
    assert "Not all questions were asked of a&lt;b (the first 20 of each of its tasks)." in page
    assert "Asked in the run&#x27;s chat template, examples as turns." in page
    assert "a<b" not in page


def changed(change: Any) -> bytes:
    results = deepcopy(RESULTS)
    change(results)
    return json.dumps(results).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"entries": []}',
        b'{"entries": {"a": {}}}',
        json.dumps(RESULTS).encode()[:-9],
        changed(lambda results: results.update(limit="x")),
        changed(lambda results: results["entries"]["a<b"]["settings"].update(entry={})),
        changed(lambda results: results["entries"]["a<b"]["scores"][0].update(value="x")),
        changed(lambda results: results["entries"]["a<b"]["scores"][0].pop("low")),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, json.dumps(RESULTS).encode(), "whole")
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=r"results\.json: damaged; delete it, or ask again") as failure:
        read_evaluations(tmp_path)
    assert str(path) in str(failure.value)


def test_a_run_without_evaluations_has_no_tables(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == {}
    assert list(evaluation_tables({}, "GPTNeo")) == []
