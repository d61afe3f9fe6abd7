"""Sums for tuning: right, complete, in lm-eval's words, and never both trained on and held out."""

import re
from pathlib import Path

import orjson
import pytest

from mindllm_engine.errors import ConfigError
from mindllm_engine.tuning.arithmetic import write_arithmetic
from mindllm_engine.tuning.records import Record, read_records

QUESTION = re.compile(r"\n\nQ: What is (\d+) (plus|minus) (\d+)\?\n\nA:")


def read(path: Path) -> list[dict[str, str]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_every_sum_is_right_and_stands_on_one_side(tmp_path: Path) -> None:
    counts = write_arithmetic(tmp_path, largest=20, holdout=0.2, questions=10_000, seed=0)
    train = {entry["instruction"]: entry["output"] for entry in read(tmp_path / "train.jsonl")}
    heldout = {entry["context"]: entry["completion"] for entry in read(tmp_path / "heldout.jsonl")}
    seen = {entry["context"]: entry["completion"] for entry in read(tmp_path / "seen.jsonl")}
    assert len(train) + len(heldout) == 2 * 21 * 21 == counts["train.jsonl"] + counts["heldout.jsonl"]
    assert not set(train) & set(heldout)
    assert seen == train
    assert 0.1 < len(heldout) / 882 < 0.3
    for question, answer in (train | heldout).items():
        match = QUESTION.fullmatch(question)
        assert match is not None
        a, word, b = match.groups()
        assert answer == f" {int(a) + int(b) if word == 'plus' else int(a) - int(b)}"


def test_records_are_those_of_tuning_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_arithmetic(tmp_path / name, 5, 0.1, questions=3, seed=1)
    assert (tmp_path / "a" / "train.jsonl").read_bytes() == (tmp_path / "b" / "train.jsonl").read_bytes()
    assert all(isinstance(record, Record) for record in read_records(tmp_path / "a" / "train.jsonl"))
    assert len(read(tmp_path / "a" / "seen.jsonl")) == 3


@pytest.mark.parametrize("wrong", [{"largest": 0}, {"holdout": 1.0}, {"questions": 0}, {"holdout": 0.9999}])
def test_impossible_numbers(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="arithmetic"):
        write_arithmetic(tmp_path, **({"largest": 3, "holdout": 0.1, "questions": 2, "seed": 0} | wrong))
    assert not list(tmp_path.iterdir())
