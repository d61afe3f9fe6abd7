"""Instruction records as text to pre-train on."""

import gzip
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.tuning.texts import write_texts
from tests.training.tiny_run import ROOT, environment

RECORDS = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say yes.", "input": "", "output": " \n"},
    {"messages": [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早上好"}]},
    {"messages": [{"role": "user", "content": "nobody answers"}]},
]
TEXTS = ["Add.\n1 and 2\n3", "早\n早上好"]


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_bytes(gzip.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows)))
    return path


def read_texts(path: Path) -> list[str]:
    return [orjson.loads(line)["text"] for line in path.read_bytes().splitlines()]


def test_a_document_is_the_messages_line_by_line_and_bad_records_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.gz", list(RECORDS))
    report = write_texts([path, path], tmp_path / "out.jsonl")
    assert read_texts(tmp_path / "out.jsonl") == TEXTS * 2
    assert (report.written, report.bad.total(), report.first_bad) == (4, 4, "a.jsonl.gz:2")


def test_files_of_which_nothing_can_be_used_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.gz", [{"instruction": "?", "output": ""}, ["no object"]])
    with pytest.raises(
        DataError, match=r"a\.jsonl\.gz: not one record can be used \(1 empty response, 1 no JSON object"
    ):
        write_texts([path], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ConfigError, match="would be overwritten"):
        write_texts([path], path)
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        write_texts([tmp_path / "missing.jsonl"], tmp_path / "out.jsonl")


def test_the_tool_says_what_it_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl.gz", list(RECORDS))
    tool = str(ROOT / "tools" / "write_instruction_text.py")
    done = subprocess.run(
        [sys.executable, tool, "--records", '["${MINDLLM_DATA}/*.gz"]', "--out", str(tmp_path / "out.jsonl")],
        capture_output=True,
        text=True,
        env={**environment(), "MINDLLM_DATA": str(tmp_path)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "2 documents" in done.stdout
    assert "1 records with the last message is not the assistant's" in done.stdout
    assert read_texts(tmp_path / "out.jsonl") == TEXTS
