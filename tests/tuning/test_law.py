"""Law data: the shapes of its records, the ranges by two tokenizers, and balanced numbers against brute force."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.tuning.law import LawConfig, LengthRange, law_messages, prepare_law, summary_path
from mindllm_engine.tuning.record_files import fill, stable_sample
from mindllm_engine.tuning.records import Record, read_records
from tests.real_data import REAL_DATA

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "{query}\n法条：\n{laws}"
WORDS = ["合同", "借款", "房屋", "离婚", "工资", "赔偿", "证据", "起诉", "时效", "继承"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One that knows the words and some phrases, and one that knows hardly more than the characters."""
    folder = tmp_path_factory.mktemp("tokenizers")
    chinese = ["".join(WORDS[(i * j) % 10] for j in range(1, 40)) + "。" for i in range(1, 60)]
    train_tokenizer(chinese, 340, folder / "phrases.model")
    train_tokenizer(chinese, 291, folder / "characters.model")
    return [str(folder / "phrases.model"), str(folder / "characters.model")]


def _question(length: int, salt: int = 0) -> str:
    return "".join(WORDS[(salt + i * (salt % 7 + 1)) % 10] for i in range(length))


def _write(path: Path, rows: list[Any]) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    return str(path)


def _rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{i}",
            "kind": f"k{i % 3}",
            "instruction": _question(1 + i % 17, i),
            "output": _question(5 + i % 23, i),
        }
        for i in range(count)
    ]


def _brute_length(tokenizer: str, row: dict[str, Any]) -> int:
    opened = Tokenizer(tokenizer)
    return len(opened.encode(row["instruction"])) + len(opened.encode(row["output"]))


def test_ranges_and_balance_against_brute_force(tokenizers: list[str], tmp_path: Path) -> None:
    rows = _rows(240)
    lengths = {row["id"]: [_brute_length(path, row) for path in tokenizers] for row in rows}
    ranges = [LengthRange(3, 18), LengthRange(19, 40), LengthRange(41, 90, size=7)]
    brute: dict[str, list[str]] = {part.name: [] for part in ranges}
    distinct: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        distinct.setdefault((row["instruction"], row["output"]), row)
    for row in distinct.values():
        for part in ranges:
            if all(part.min_tokens <= n <= part.max_tokens for n in lengths[row["id"]]):
                brute[part.name].append(row["id"])
    assert all(brute.values())

    config = LawConfig(_write(tmp_path / "law.jsonl.gz", rows), tokenizers, ranges, str(tmp_path / "out.jsonl"))
    report = prepare_law(config)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    fewest = min(map(len, brute.values()))
    assert report.found == {name: len(ids) for name, ids in brute.items()}
    assert Counter(row["range"] for row in written) == {
        "3-18": fewest,
        "19-40": fewest,
        "41-90": min(7, len(brute["41-90"])),
    }
    assert all(row["id"] in brute[row["range"]] and row["tokens"] == lengths[row["id"]] for row in written)
    assert sum(report.kept.values()) + sum(report.left_out.values()) == report.records == 240
    assert json.loads(summary_path(tmp_path / "out.jsonl").read_text())["kept"] == report.kept
    assert all(isinstance(record, Record) for record in read_records(tmp_path / "out.jsonl"))

    first = (tmp_path / "out.jsonl").read_bytes()
    prepare_law(config)
    assert (tmp_path / "out.jsonl").read_bytes() == first
    _write(tmp_path / "law.jsonl.gz", rows[::-1])
    prepare_law(config)
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = [sorted(json.dumps(row["messages"]) for row in part) for part in (written, again)]
    assert texts[0] == texts[1]  # the choice does not depend on the order of the file


@given(st.lists(st.text(), unique=True), st.integers(0, 12), st.integers(0, 5))
def test_a_stable_sample_is_of_the_size_and_in_order(items: list[str], size: int, seed: int) -> None:
    sample = stable_sample(items, size, str, seed)
    assert len(sample) == min(size, len(items))
    assert sample == [item for item in items if item in set(sample)]
    assert set(stable_sample(items[::-1], size, str, seed)) == set(sample)
    assert set(stable_sample(items, size + 1, str, seed)) >= set(sample)


@given(st.text(), st.text())
def test_templates_are_filled_once(query: str, laws: str) -> None:
    assert fill("a{laws}b{query}c{other}", query=query, laws=laws) == f"a{laws}b{query}c" + "{other}"


def test_shapes_of_records() -> None:
    chat = law_messages({"query": "借款不还怎么办", "laws": "['甲条', '乙条']", "response": "可以起诉。"}, TEMPLATE)
    assert chat[0].content == "借款不还怎么办\n法条：\n甲条\n乙条"
    assert [message.role for message in chat] == ["user", "assistant"]
    history = ["[客户] 怎么办", "[律师] 先协商。", "[客户] 不行呢", "[律师] 起诉。"]
    chat = law_messages({"query": "怎么办", "laws": [], "history": history}, TEMPLATE)
    assert [message.content for message in chat] == ["怎么办", "先协商。", "不行呢", "起诉。"]
    # Text that is no list stands for one article.
    assert "一条" in law_messages({"query": "问", "laws": "一条", "response": "答"}, TEMPLATE)[0].content


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "no JSON object"),
        ({"query": 3, "response": "答"}, "query is no text"),
        ({"query": "问"}, "neither history nor response"),
        ({"query": "问", "response": " "}, "response of only whitespace"),
        ({"query": "问", "response": "答", "laws": [1]}, "laws is no list of texts"),
        ({"query": "问", "history": []}, "history is no list"),
        ({"query": "问", "history": ["你好"]}, "begins with neither"),
        ({"query": "问", "history": ["[客户] 一", "[客户] 二", "[律师] 三"]}, "one speaker in a row"),
        ({"query": "问", "history": ["[客户] 一"]}, "last message is not the assistant's"),
        ({"instruction": "问", "output": ""}, "empty response"),
    ],
)
def test_bad_records(record: Any, reason: str, tokenizers: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        law_messages(record, TEMPLATE)
    good = {"instruction": _question(9), "output": _question(9)}
    source = _write(tmp_path / "law.jsonl.gz", [good, "{" if record is None else record])
    report = prepare_law(LawConfig(source, tokenizers, [LengthRange(1, 4000)], str(tmp_path / "out.jsonl")))
    assert report.kept == {"1-4000": 1}
    assert len(report.bad) == 1
    assert report.bad[0].startswith("law.jsonl.gz:2: ")
    assert reason in report.bad[0]


def test_what_cannot_be_is_refused(tokenizers: list[str], tmp_path: Path) -> None:
    source = _write(tmp_path / "law.jsonl.gz", _rows(5))

    def refused(**changed: Any) -> str:
        values: dict[str, Any] = {
            "input": source, "tokenizers": tokenizers, "ranges": [LengthRange(1, 400)],
            "out": str(tmp_path / "out.jsonl"),
        }  # fmt: skip
        with pytest.raises((ConfigError, DataError)) as caught:
            prepare_law(LawConfig(**values | changed))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out.jsonl").exists()
        return str(caught.value)

    assert "the ranges are over two" in refused(tokenizers=tokenizers[:1])
    assert "ranges is empty" in refused(ranges=[])
    assert "9-3 is no range" in refused(ranges=[LengthRange(9, 3)])
    assert "1-50 and 50-90 overlap" in refused(ranges=[LengthRange(50, 90), LengthRange(1, 50)])
    assert "must be at least 1" in refused(ranges=[LengthRange(1, 50, size=0)])
    assert "must hold {query}" in refused(question_with_laws="{laws}")
    assert "no file matches" in refused(input=str(tmp_path / "none*"))
    assert "cannot be read" in refused(tokenizers=[tokenizers[0], str(tmp_path / "none.model")])
    assert "no record is left of 5" in refused(ranges=[LengthRange(5000, 6000)])


def test_the_tool_on_real_law(tmp_path: Path) -> None:
    files = [REAL_DATA / "law" / f"{name}.jsonl.gz" for name in ("sft", "consultations")]
    if not all(file.exists() for file in files):
        pytest.skip(f"no law data in {REAL_DATA}; set MINDLLM_DATA")
    with gzip.open(files[1], "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["history"][1] for line in lines]
    train_tokenizer(texts, 3000, tmp_path / "a.model")
    train_tokenizer(texts[:60], 1800, tmp_path / "b.model")
    command = [
        sys.executable, ROOT / "tools" / "prepare_law.py", "--config", ROOT / "configs" / "tuning" / "law.yaml",
        "--input", json.dumps(list(map(str, files))), "--out", tmp_path / "law.jsonl",
        "--tokenizers", json.dumps([str(tmp_path / "a.model"), str(tmp_path / "b.model")]),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    records = list(read_records(tmp_path / "law.jsonl"))
    assert len(records) > 300
    assert all(isinstance(record, Record) for record in records)
    summary = json.loads((tmp_path / "law.summary.json").read_text())
    assert summary["records"] == 4316
    assert sum(summary["kept"].values()) == len(records)
    assert len(set(summary["kept"].values())) == 1  # balanced
    assert any(len(record.messages) > 2 for record in records if isinstance(record, Record))


def test_the_input_is_never_overwritten(tokenizers: list[str], tmp_path: Path) -> None:
    source = tmp_path / "law.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in _rows(40)))
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    for out in ("law.jsonl", "link.jsonl"):
        config = LawConfig(str(source), tokenizers, [LengthRange(1, 400)], str(tmp_path / out), TEMPLATE)
        with pytest.raises(ConfigError, match=r"is read from, and would be overwritten"):
            prepare_law(config)
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["law.jsonl", "link.jsonl"]
