"""The step decontamination on evaluation files made here, and on real ones planted into real text."""

import gzip
import pickle
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from datatrove.data import Document

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.steps.decontamination import (
    Decontamination,
    DecontaminationConfig,
    EvaluationFile,
    read_items,
)
from mindllm_engine.errors import ConfigError, DataError

EN_ITEM = {
    "question": "A baker fills 14 trays with 9 rolls each and sells all but 17 of them; how many rolls did he sell?",
    "choices": ["109", "126", "143", "92"],
}
ZH_ITEM = {
    "question": "某工厂原计划每天生产零件八十个，实际每天多生产四分之一，提前几天可以完成四百个零件",
    "choices": ["一天", "两天"],
}
FILLER = "The road along the coast was closed after the storm, and the post came by boat. "


@pytest.fixture
def files(tmp_path: Path) -> list[EvaluationFile]:
    with gzip.open(tmp_path / "bakery.jsonl.gz", "wb") as file:
        file.write(orjson.dumps(EN_ITEM | {"question": "Why?"}) + b"\n" + orjson.dumps(EN_ITEM) + b"\n")
    (tmp_path / "gongchang.jsonl").write_bytes(orjson.dumps(ZH_ITEM))
    return [
        EvaluationFile(str(tmp_path / "bakery.jsonl.gz"), ["question", "choices"]),
        EvaluationFile(str(tmp_path / "gongchang.jsonl"), ["question"]),
    ]


def apply(step: Decontamination, text: str) -> Drop | None:
    return step.apply(Document(text, "web/0:1"))


def test_items_are_found_named_and_shown(files: list[EvaluationFile]) -> None:
    step = Decontamination(DecontaminationConfig(files=files))
    question, choices = EN_ITEM["question"], EN_ITEM["choices"]
    en = f"{FILLER * 5}Question: {str(question).upper()}\n(A) {choices[0]}\n(B) {choices[1]}\n{FILLER * 5}"
    drop = apply(step, en)
    assert drop is not None
    assert (drop.reason, drop.detail) == ("benchmark item", "bakery.jsonl.gz, record 2: 23 of its 25 words")
    assert drop.excerpt is not None
    assert str(question).upper() in drop.excerpt
    assert len(drop.excerpt) < 400

    both = apply(step, en + str(ZH_ITEM["question"])[:30])
    assert both is not None
    assert both.detail.endswith(", and 1 more items")
    assert apply(step, FILLER * 20) is None
    assert step.ledger.step(step.name).counts == {
        "documents with items of bakery.jsonl.gz": 2,
        "documents with items of gongchang.jsonl": 1,
    }


def test_less_than_the_share_of_an_item_passes(files: list[EvaluationFile]) -> None:
    step = Decontamination(DecontaminationConfig(files=files, max_share=0.7))
    question = str(ZH_ITEM["question"])
    assert apply(step, question[:26]) is None
    assert apply(step, question) is not None


def test_a_pipeline_gets_what_is_clean(files: list[EvaluationFile]) -> None:
    step = Decontamination(DecontaminationConfig(files=files))
    documents = [Document(FILLER, "web/0:1"), Document(str(ZH_ITEM["question"]), "web/0:2")]
    assert [document.id for document in step.run(documents)] == ["web/0:1"]
    assert step.ledger.to_json()[step.name]["dropped"]["benchmark item"]["documents"] == 1


def test_without_files_nothing_is_dropped() -> None:
    assert apply(Decontamination(DecontaminationConfig()), str(EN_ITEM["question"])) is None


def test_the_step_is_pickled_before_and_after_use(files: list[EvaluationFile]) -> None:
    step = Decontamination(DecontaminationConfig(files=files))
    for _ in range(2):
        step = pickle.loads(pickle.dumps(step))
        assert apply(step, str(ZH_ITEM["question"])) is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "x"}\n{"question": ', "line 2: not JSON"),
        (b'{"answer": "x"}', "'question' is missing"),
        (b'{"question": {"a": 1}}', "'question' is missing or no text"),
        (b'{"question": ["x", null]}', "'question' is missing or no text"),
        (b"[1]", "'question' is missing"),
        (b'{"question": "\xff"}', "not JSON"),
    ],
)
def test_bad_evaluation_data_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    step = Decontamination(DecontaminationConfig(files=[EvaluationFile(str(path), ["question"])]))
    with pytest.raises(DataError, match=message):
        list(step.run([Document("text", "web/0:1")]))
    assert step.ledger.to_json() == {}


def test_a_gzip_file_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(orjson.dumps(EN_ITEM) * 3)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_items(EvaluationFile(str(path), ["question"])))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"files": [EvaluationFile("/no/such.jsonl", ["question"])]}, DataError, "/no/such.jsonl"),
        ({"min_words": 14}, ConfigError, "min_words"),
        ({"chars_n": 1000}, ConfigError, "chars_n"),
        ({"max_items": 0}, ConfigError, "max_items"),
        ({"max_share": 1.0}, ConfigError, "max_share"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Decontamination(DecontaminationConfig(**values))


def test_a_file_without_fields_is_refused(files: list[EvaluationFile]) -> None:
    with pytest.raises(ConfigError, match="fields"):
        Decontamination(DecontaminationConfig(files=[EvaluationFile(files[0].path, [])]))


# Of items planted whole, and with 3 and 10 % of the words (characters of Chinese) left out, exchanged or added.
BARS = {
    "mmlu_test": (0.99, 0.9, 0.6),
    "cmmlu_test": (0.99, 0.8, 0.4),
    "hellaswag_val": (0.99, 0.9, 0.5),
    "gsm8k_test": (0.99, 0.9, 0.5),
}
FIELDS = {"hellaswag_val": ["context"], "gsm8k_test": ["question"]}


def edited(chooser: random.Random, item: str, share: float) -> str:
    chinese = 3 * sum("一" <= c <= "鿿" for c in item) > len(item)
    units = list(item) if chinese else item.split(" ")
    out: list[str] = []
    for unit in units:
        if chooser.random() < share:
            other = chooser.choice(units)
            out += chooser.choice([[], [other], [unit, other]])
        else:
            out.append(unit)
    return ("" if chinese else " ").join(out)


def test_real_items_planted_into_real_text(real_text: Path) -> None:
    chooser = random.Random(0)
    files = [
        EvaluationFile(str(real_text.parent / "eval" / f"{name}.jsonl.gz"), FIELDS.get(name, ["question", "choices"]))
        for name in BARS
    ]
    step = Decontamination(DecontaminationConfig(files=files))
    clean, false = [], []
    for path in sorted(real_text.glob("*.jsonl.gz")):
        with gzip.open(path) as lines:
            for line in lines:
                record = orjson.loads(line)
                drop = apply(step, record["text"])
                if drop is None:
                    clean.append(record["text"][:3000])
                else:
                    false.append(f"{record['id']}: {drop.detail}")
    print(f"of {len(clean) + len(false)} documents {len(false)} have items: {false}")
    assert len(false) < 1e-3 * len(clean)
    for file, name in zip(files, BARS, strict=True):
        items = chooser.sample(list(read_items(file)), 300)
        recalls = []
        for share in (0.0, 0.03, 0.10):
            found = 0
            for item in items:
                base = chooser.choice(clean)
                at = chooser.randrange(len(base) + 1)
                found += apply(step, f"{base[:at]}\n{edited(chooser, item, share)}\n{base[at:]}") is not None
            recalls.append(found / len(items))
        print(f"{name}: found {recalls[0]:.1%} whole, {recalls[1]:.1%} with 3 %, {recalls[2]:.1%} with 10 % edited")
        assert all(recall >= bar for recall, bar in zip(recalls, BARS[name], strict=True))
