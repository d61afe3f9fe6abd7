"""Prompts in every shape, and lines that are none."""

import gzip
import json
from pathlib import Path

import pytest

from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.arena.prompts import read_prompts
from tests.real_data import REAL_DATA

CONSULTATION = {
    "id": "c1",
    "query": "房东不退押金怎么办？",
    "laws": ["甲条：押金应当退还。", "乙条：可以起诉。"],
    "history": ["[客户] 房东不退押金怎么办？", "[律师] 有合同吗？", "[客户] 有 合同。", "[律师] 那可以起诉。"],
}


def write(path: Path, records: list[object]) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in records) + "\n")
    return path


def test_a_consultation_is_asked_up_to_the_clients_last_word(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [CONSULTATION])
    [prompt], bad = read_prompts(path, "last", None)
    assert not bad
    assert prompt.messages == (
        Message("user", "房东不退押金怎么办？"),
        Message("assistant", "有合同吗？"),
        Message("user", "有 合同。"),
    )
    assert prompt.reference == "甲条：押金应当退还。\n乙条：可以起诉。"
    [prompt], _ = read_prompts(path, "first", None)
    assert prompt.messages == (Message("user", "房东不退押金怎么办？"),)


def test_chats_and_instructions(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    path = write(
        tmp_path / "p.jsonl",
        [{"messages": chat}, {"instruction": "Add.", "input": "1 2", "output": "3"}, {"query": "x"}],
    )
    prompts, bad = read_prompts(path, "last", None)
    assert [prompt.messages for prompt in prompts] == [
        (Message("system", "be brief"), Message("user", "a")),
        (Message("user", "Add.\n1 2"),),
        (Message("user", "x"),),
    ]
    assert [prompt.id for prompt in prompts] == ["p.jsonl:1", "p.jsonl:2", "p.jsonl:3"]
    assert not bad


def test_bad_lines_are_named_and_the_rest_read(tmp_path: Path) -> None:
    lines: list[object] = [
        {"query": "ok", "id": 1},
        "not json",
        [1],
        {"query": "  "},
        {"query": 5},
        {"text": "a"},
        {"query": "again", "id": "1"},
        {"query": "a", "laws": "b"},
        {"query": "a", "history": ["客户: a"]},
        {"query": "a", "history": ["[律师] a"]},
        {"query": "a", "history": "[客户] a"},
        {"messages": [{"role": "judge", "content": "a"}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": []},
        {"instruction": None},
        {"query": "also ok", "laws": None, "history": []},
    ]
    prompts, bad = read_prompts(write(tmp_path / "p.jsonl", lines), "last", None)
    assert [prompt.messages[0].content for prompt in prompts] == ["ok", "also ok"]
    assert [each.where for each in bad] == [f"p.jsonl:{number}" for number in range(2, 16)]
    assert all(each.reason for each in bad)


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"query": "a"}, "bad", {"query": "b"}, "bad", {"query": "c"}])
    prompts, bad = read_prompts(path, "last", 2)
    assert [prompt.messages[0].content for prompt in prompts] == ["a", "b"]
    assert len(bad) == 1


@pytest.mark.parametrize("content", ["", "\n\n", "{}\n", "nonsense\n"])
def test_a_file_without_prompts(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"p\.jsonl: holds no prompt"):
        read_prompts(tmp_path / "p.jsonl", "last", None)


def test_a_missing_or_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl", "last", None)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"query": "a"}\n' * 100)[:-10])
    with pytest.raises(DataError, match="truncated"):
        read_prompts(tmp_path / "cut.jsonl.gz", "last", None)


def test_real_consultations() -> None:
    path = REAL_DATA / "law" / "consultations.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    prompts, bad = read_prompts(path, "last", None)
    assert (len(prompts), len(bad)) == (316, 0)
    assert all(prompt.messages[-1].role == "user" and prompt.reference for prompt in prompts)
    assert sum(len(prompt.messages) >= 3 for prompt in prompts) > 300
