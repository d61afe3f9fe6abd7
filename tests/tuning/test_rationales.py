"""Distilling rationales from real servers that answer well, with nonsense, with errors, late or not at all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.chat_endpoint import EndpointConfig
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.tuning.rationales import RationaleConfig, distill_rationales, parse_answer
from mindllm_engine.tuning.records import Record, read_records
from tests.chat_server import ChatServer, Reply, completion

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["消极", "中性", "积极"]
REASON = "文本提到利润大幅增长，投资者情绪乐观。"


def _records(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{n}", "text": f"公司第{n}季度利润变化", "label": CLASSES[n % 3],
            "messages": [{"role": "user", "content": f"问{n}"}, {"role": "assistant", "content": CLASSES[n % 3]}],
        }
        for n in range(count)
    ]  # fmt: skip


def _write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _config(tmp_path: Path, server: ChatServer | None, count: int = 9, **changed: Any) -> RationaleConfig:
    endpoint = None
    if server is not None:
        cache = str(tmp_path / "cache.jsonl")
        endpoint = EndpointConfig(server.url, "teacher", retries=1, timeout_seconds=1.0, concurrency=2, cache=cache)
    source = _write(tmp_path / "records.jsonl", _records(count))
    return RationaleConfig(
        **{"input": source, "out": str(tmp_path / "out"), "classes": CLASSES, "endpoint": endpoint} | changed
    )


def _number(request: dict[str, Any]) -> int:
    return int(request["messages"][-1]["content"].split("第")[1].split("季度")[0])


def _good(request: dict[str, Any]) -> str:
    return f"{REASON}\n结论：{CLASSES[_number(request) % 3]}"


def test_rationales_become_tuning_records_and_are_asked_for_once(tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    with ChatServer(_good) as server:
        config = _config(tmp_path, server)
        report = distill_rationales(config, lambda done, total: shown.append((done, total)))
        assert report.requests == len(server.requests) == 9
        assert report.kept == dict.fromkeys(CLASSES, 3)
        assert report.label_told
        assert shown[-1] == (9, 9)
        files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        again = distill_rationales(config)
        assert (again.requests, again.kept) == (0, report.kept)
        assert len(server.requests) == 9
    unchanged = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files.keys() == unchanged.keys()
    assert all(files[name] == unchanged[name] for name in files if name != "summary.json")
    with_rationale, without = (_read(tmp_path / "out" / f"{n}_rationale.jsonl") for n in ("with", "without"))
    assert [row["id"] for row in with_rationale] == [row["id"] for row in without] == [f"r{n}" for n in range(9)]
    assert without == _records(9)
    for row in with_rationale:
        assert row["messages"][1]["content"] == f"{REASON}\n结论：{row['label']}"
        assert row["text"] in row["messages"][0]["content"]
        # The student is not told the label: all classes stand in its question alike.
        assert all(row["messages"][0]["content"].count(name) == 1 for name in CLASSES)
    assert all(isinstance(record, Record) for record in read_records(tmp_path / "out" / "with_rationale.jsonl"))


def test_every_failure_is_counted_under_its_reason(tmp_path: Path) -> None:
    def unreliable(request: dict[str, Any]) -> str | Reply:
        match _number(request):
            case 1:
                return "天气不错"
            case 2:
                return Reply(500, b"overloaded")
            case 3:
                reply = completion(_good(request))
                reply.seconds_before = 3.0
                return reply
            case 4:
                return f"{REASON}\n结论：积极"  # the label is 中性
            case 5:
                return f"{REASON}\n结论：积极或中性"
            case 6:
                return "好。\n结论：消极"
            case 7:
                return f"结论：中性\n{REASON}\n结论：中性"
            case 8:
                return Reply(200, b"<html>no JSON</html>")
        return _good(request)

    with ChatServer(unreliable) as server:
        report = distill_rationales(_config(tmp_path, server, count=12))
    assert sum(report.kept.values()) == 4
    assert sum(report.kept.values()) + sum(report.failures.values()) == report.records == 12
    reasons = {row["id"]: row["reason"] for row in _read(tmp_path / "out" / "failures.jsonl")}
    assert reasons.keys() == {f"r{n}" for n in range(1, 9)}
    assert reasons["r1"] == "no line of the answer begins with 结论："
    assert "500" in reasons["r2"]
    assert "within 1 s" in reasons["r3"]
    assert reasons["r4"] == "the conclusion is another class than the label"
    assert reasons["r5"] == "the conclusion is none of the classes"
    assert reasons["r6"] == "the rationale is shorter than 10 characters"
    assert reasons["r7"] == "the answer does not end with its one conclusion"
    assert "no JSON" in reasons["r8"]


def test_answers_from_a_file_and_then_from_the_teacher(tmp_path: Path) -> None:
    answers = [{"id": f"r{n}", "answer": f"{REASON}\n结论：{CLASSES[n % 3]}"} for n in range(5)]
    path = _write(tmp_path / "answers.jsonl", answers)
    offline = distill_rationales(_config(tmp_path, None, answers=path))
    assert (sum(offline.kept.values()), offline.requests, offline.from_file) == (5, 0, 5)
    assert offline.failures == {"no answer: no answer in the file": 4}
    with ChatServer(_good) as server:
        both = distill_rationales(_config(tmp_path, server, answers=path))
    assert (sum(both.kept.values()), both.requests, both.from_file) == (9, 4, 5)
    # What it wrote serves as such a file.
    again = distill_rationales(_config(tmp_path, None, answers=str(tmp_path / "out" / "rationales.jsonl")))
    assert (again.kept, again.failures) == (both.kept, {})


def test_bad_records_are_named(tmp_path: Path) -> None:
    rows = _records(3)
    bad = [None, rows[0], rows[1] | {"id": ""}, rows[1] | {"id": "x", "label": "狂喜"}, {"id": "y", "text": "一"}]
    with ChatServer(_good) as server:
        config = _config(tmp_path, server)
        _write(tmp_path / "records.jsonl", rows + bad)
        report = distill_rationales(config)
    assert sum(report.kept.values()) == 3
    failures = _read(tmp_path / "out" / "failures.jsonl")
    assert [failure["where"] for failure in failures] == [f"records.jsonl:{line}" for line in range(4, 9)]
    assert "no JSON object" in failures[0]["reason"]
    assert "an id that another record has" in failures[1]["reason"]
    assert failures[2]["reason"] == "bad record: no id"
    assert "none of the classes" in failures[3]["reason"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    def refused(**changed: Any) -> str:
        with pytest.raises((ConfigError, DataError)) as caught:
            distill_rationales(_config(tmp_path, None, **changed))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path = _write(tmp_path / "answers.jsonl", [{"id": "r0", "answer": "天气不错"}])
    assert "name a teacher, or a file of answers" in refused()
    assert "two different names" in refused(answers=path, classes=["消极"])
    assert "teacher must hold" in refused(answers=path, teacher="{text}")
    assert "would tell the answer" in refused(answers=path, question="{text}{classes}{label}")
    assert "max_tokens" in refused(answers=path, max_tokens=0)
    assert "endpoint.url must be" in refused(endpoint=EndpointConfig("localhost", "m"))
    assert "cannot be read" in refused(answers=str(tmp_path / "none.jsonl"))
    assert "expected a JSON object" in refused(answers=_write(tmp_path / "odd.jsonl", [{"id": "r0"}]))
    two = [{"id": "r0", "answer": "一"}, {"id": "r0", "answer": "二"}]
    assert "a second, different answer to r0" in refused(answers=_write(tmp_path / "two.jsonl", two))
    assert not (tmp_path / "out").exists()
    assert "not one of 9 records has a rationale" in refused(answers=path)
    assert not (tmp_path / "out" / "with_rationale.jsonl").exists()


@given(st.text(max_size=60), st.sampled_from(CLASSES), st.sampled_from(CLASSES))
def test_only_the_label_in_the_last_line_passes(rationale: str, concluded: str, label: str) -> None:
    answer = f"{rationale}\n结论：{concluded}"
    usable = len(rationale.strip()) >= 10 and not any(
        line.strip().startswith("结论：") for line in rationale.splitlines()
    )
    if usable and concluded == label:
        parsed = parse_answer(answer, label, CLASSES, 10)
        assert parsed == "\n".join(rationale.strip().splitlines()).strip()
    else:
        with pytest.raises(ValueError, match=r"conclusion|rationale"):
            parse_answer(answer, label, CLASSES, 10)


def test_the_tool(tmp_path: Path) -> None:
    with ChatServer(_good) as server:
        config = yaml.safe_load((ROOT / "configs" / "tuning" / "rationales.yaml").read_text())
        config["input"] = _write(tmp_path / "records.jsonl", _records(4))
        config["out"] = str(tmp_path / "out")
        config["endpoint"] |= {"url": server.url, "cache": str(tmp_path / "cache.jsonl"), "retries": 0}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
        command = [sys.executable, ROOT / "tools" / "distill_rationales.py", "--config", tmp_path / "config.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 records; 4 requests sent" in done.stdout
    # The server is gone: what it answered is in the cache, and more cannot be had.
    offline = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert offline.returncode == 0, offline.stderr
    _write(tmp_path / "records.jsonl", _records(6)[4:])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "no server answers" in done.stderr


def test_no_answer_that_was_paid_for_is_lost(tmp_path: Path) -> None:
    """rationales.jsonl of a run is the `answers` of the next, on fewer records, into the same folder."""
    with ChatServer(_good) as server:
        distill_rationales(_config(tmp_path, server))
    answers = tmp_path / "out" / "rationales.jsonl"
    before = {row["id"]: row["answer"] for row in _read(answers)}
    assert len(before) == 9
    report = distill_rationales(_config(tmp_path, None, count=3, answers=str(answers)))
    assert sum(report.kept.values()) == 3
    assert {row["id"]: row["answer"] for row in _read(answers)} == before
    (tmp_path / "cache.jsonl").unlink()
    with (
        ChatServer(lambda request: Reply(500, b"overloaded")) as server,
        pytest.raises(DataError, match="not one of 9"),
    ):
        distill_rationales(_config(tmp_path, server))
    assert {row["id"]: row["answer"] for row in _read(answers)} == before
    source = tmp_path / "out" / "without_rationale.jsonl"
    with pytest.raises(ConfigError, match=r"without_rationale\.jsonl is read from, and would be overwritten"):
        distill_rationales(_config(tmp_path, None, input=str(source), answers=str(answers)))
