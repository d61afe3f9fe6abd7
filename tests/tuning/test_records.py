"""Records of every shape and compression, and every way in which one or a whole file can be bad."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.errors import DataError
from mindllm_engine.tuning.records import BadRecord, Record, read_records

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def write(path: Path, lines: list[str]) -> Path:
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(COMPRESSIONS[path.suffix if path.suffix != ".jsonl" else ""](text))
    return path


def one(tmp_path: Path, content: Any) -> Record | BadRecord:
    found = list(read_records(write(tmp_path / "a.jsonl", [json.dumps(content)])))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ({"instruction": "加一加", "input": "1, 2", "output": "3"}, [("user", "加一加\n1, 2"), ("assistant", "3")]),
        ({"instruction": "Hi", "input": "", "output": "Ho"}, [("user", "Hi"), ("assistant", "Ho")]),
        ({"instruction": None, "input": "Hi", "output": "Ho"}, [("user", "Hi"), ("assistant", "Ho")]),
        ({"input": "Hi", "output": " Ho\n"}, [("user", "Hi"), ("assistant", " Ho\n")]),
        ({"messages": None, "instruction": "Hi", "output": "Ho"}, [("user", "Hi"), ("assistant", "Ho")]),
        (
            {"messages": None, "conversations": [{"from": r, "value": r} for r in ("human", "gpt")]},
            [("user", "human"), ("assistant", "gpt")],
        ),
        (
            {"messages": [{"role": r, "content": c} for r, c in (("system", ""), ("user", "a"), ("assistant", "b"))]},
            [("system", ""), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"conversations": [{"from": r, "value": c} for r, c in (("human", "a"), ("gpt", "b")) * 2]},
            [("user", "a"), ("assistant", "b"), ("user", "a"), ("assistant", "b")],
        ),
    ],
)
def test_shapes(tmp_path: Path, content: Any, messages: list[tuple[Any, str]]) -> None:
    record = one(tmp_path, content | {"id": "x", "lang": 3})
    assert isinstance(record, Record)
    assert record.messages == tuple(Message(role, text) for role, text in messages)
    assert (record.where, record.id, record.lang) == ("a.jsonl:1", "x", None)
    assert record.response == messages[-1][1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (3, "no JSON object"),
        ({}, "neither instruction"),
        ({"output": "x"}, "neither instruction"),
        ({"instruction": "x"}, "neither instruction"),
        ({"instruction": "x", "output": ""}, "empty response"),
        ({"instruction": "x", "output": None}, "empty response"),
        ({"instruction": "x", "output": "\u3000\n"}, "response of only whitespace"),
        ({"instruction": "x", "output": "\u200b\ufeff\0 "}, "response of only whitespace"),
        ({"instruction": "", "input": "", "output": "x"}, "empty instruction"),
        ({"instruction": " ", "output": "x"}, "instruction of only whitespace"),
        ({"instruction": 3, "output": "x"}, "instruction is no text"),
        ({"messages": []}, "messages is no list, or an empty one"),
        ({"messages": "x"}, "messages is no list"),
        ({"messages": ["x"]}, "a message is no JSON object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "none of the roles system, user"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "none of the roles system, user"),
        ({"messages": [{"role": {"a": 1}, "content": "x"}]}, "none of the roles system, user"),
        ({"messages": [{"role": "user", "content": 3}]}, "a message of the user has no text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the last message is not the assistant's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the first message is the assistant's"),
        (
            {"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "no message is the user's",
        ),
    ],
)
def test_what_cannot_be_learnt_from_comes_with_its_line_and_reason(tmp_path: Path, content: Any, reason: str) -> None:
    record = one(tmp_path, content)
    assert isinstance(record, BadRecord)
    assert record.where == "a.jsonl:1"
    assert reason in record.reason


@pytest.mark.parametrize("ending", [*COMPRESSIONS])
def test_lines_are_numbered_as_an_editor_does(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.jsonl{ending}", ['{"a": 1}', "", " ", "{no", '{"a": "\u2028"}'])
    name = f"a.jsonl{ending}"
    assert list(read_json_lines(path)) == [
        (f"{name}:1", {"a": 1}), (f"{name}:4", None), (f"{name}:5", {"a": "\u2028"}),
    ]  # fmt: skip


def test_a_byte_order_mark_and_a_last_line_without_an_end_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}')
    assert [content for _, content in read_json_lines(tmp_path / "a.jsonl")] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_damaged_files_are_errors_and_never_short_ones(tmp_path: Path, ending: str, damage: str) -> None:
    path = write(tmp_path / f"a.jsonl{ending}", [json.dumps({"text": f"{n * 7919 % 1009}"}) for n in range(5000)])
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {"cut": whole[:middle], "flipped": whole[:middle] + bytes(64) + whole[middle + 64 :], "plain": b'{"a": 1}\n'}[
            damage
        ]
    )
    with pytest.raises(DataError, match=r"a\.jsonl") as caught:
        list(read_json_lines(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read: No such file"):
        list(read_json_lines(tmp_path / "nowhere.jsonl"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["instruction", "input", "output", "messages", "role", "content", "from", "value"]),
                inner | st.sampled_from(["user", "assistant", "human", "gpt"]),
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_record_with_an_answer_or_a_bad_record(tmp_path: Path, content: Any) -> None:
    record = one(tmp_path, content)
    assert record.where == "a.jsonl:1"
    if isinstance(record, Record):
        assert record.messages[-1].role == "assistant"
        assert record.response.strip()
    else:
        assert record.reason
        assert "\n" not in record.reason
