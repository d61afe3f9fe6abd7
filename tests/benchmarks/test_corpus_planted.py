"""Planting: the truth says what is in the files, and nothing else in them has changed. Scoring: corpora made by hand,
from one where every fault was caught to one where nothing was done."""

import difflib
import gzip
import ipaddress
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import corpus_planted as planting
from benchmarks import corpus_planted_faults as faults
from benchmarks.corpus_planted import FAULTS, Item, Planted
from benchmarks.corpus_planted_score import copies_among, every_example_kept, score
from mindllm_engine.corpus.corpus_files import FileOutput, WorkFile
from mindllm_engine.corpus.ledger import EXAMPLES, Drop, Ledger

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]
ZH = [
    "春天来了",
    "河边的柳树",
    "孩子们在操场上",
    "图书馆里很安静",
    "他慢慢地走过去",
    "邮递员送来一封信",
    "天气渐渐变冷",
    "山上有一座庙",
]
EN = [
    "the ferry left at noon",
    "she folded the letter",
    "rain fell on the roof",
    "nobody had seen him",
    "two dogs slept",
]
WORDS = {"zh": ["禁词甲", "禁词乙"], "en": ["badword", "worseword"]}
ITEMS = {
    lang: [Item(f"{lang}_test.jsonl.gz:{number}", f"question {number} {lang} " + "?" * 20) for number in range(50)]
    for lang in ("zh", "en")
}
SOURCES = {"zh_web": 500, "zh_book": 120, "en_web": 400, "en_code": 60}


def make_documents() -> dict[str, list[Record]]:
    """Clean documents, all different, 250 characters and more."""
    chooser = random.Random(0)
    documents = {}
    for source, count in SOURCES.items():
        lang = source[:2]
        records = []
        for number in range(count):
            if lang == "zh":
                text = "。\n".join("，".join(chooser.choices(ZH, k=4)) for _ in range(16)) + f"。第{number}篇。"
            else:
                text = (
                    ".\n".join(", ".join(chooser.choices(EN, k=4)) for _ in range(8)) + f". Café “No. {number}” – 5 €."
                )
            record = {"id": f"{source}-{number}", "text": text, "lang": lang, "category": source[3:], "source": "a/b"}
            records.append(record)
        documents[source] = records
    return documents


@pytest.fixture(scope="module")
def documents() -> dict[str, list[Record]]:
    return make_documents()


@pytest.fixture(scope="module")
def planted(documents: dict[str, list[Record]]) -> list[Planted]:
    return planting.plant(documents, ITEMS, WORDS, share=0.2, seed=3)


@pytest.fixture(scope="module")
def folder(
    documents: dict[str, list[Record]], planted: list[Planted], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("planted")
    planting.write_corpus(documents, planted, path, seed=3)
    return path


def read(path: Path) -> list[Record]:
    return [orjson.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


# --- planting


def test_each_source_has_its_share_of_every_fault(planted: list[Planted]) -> None:
    made = Counter(one.id.split("/page/")[0] if not one.in_place else one.source for one in planted)
    assert made == {source: round(0.2 * count) for source, count in SOURCES.items()}
    by_fault = Counter(one.fault for one in planted)
    assert set(by_fault) == set(FAULTS)
    assert max(by_fault.values()) - min(by_fault.values()) <= len(SOURCES)
    kinds = {one.kind for one in planted}
    for kind in (*(f"{kind} (zh)" for kind in faults.MOJIBAKE_ZH), *(f"{kind} (en)" for kind in faults.MOJIBAKE_EN)):
        assert f"mojibake: {kind}" in kinds


def test_the_files_hold_the_clean_documents_and_the_planted_ones(
    documents: dict[str, list[Record]], planted: list[Planted], folder: Path
) -> None:
    assert {path.name for path in (folder / "pretrain").iterdir()} == {f"{source}.jsonl.gz" for source in SOURCES}
    for source, records in documents.items():
        found = read(folder / "pretrain" / f"{source}.jsonl.gz")
        own = {one.id: one for one in planted if one.source == source}
        assert len(own) == sum(one.source == source for one in planted), "no id twice"
        assert len({record["id"] for record in found}) == len(found)
        assert {record["id"]: record["text"] for record in found if record["id"] in own} == {
            name: one.text for name, one in own.items()
        }
        untouched = [record for record in records if record["id"] not in own]
        assert [record for record in found if record["id"] not in own] == untouched, "clean ones keep their order"
        added = [
            number for number, record in enumerate(found) if record["id"] in own and not own[record["id"]].in_place
        ]
        assert len(found) == len(records) + len(added)
        assert any(number < len(found) - len(added) for number in added), "and not all stand at the end"
        assert all("source" not in found[number] for number in added)
    assert planting.read_truth(folder) == planted


def test_no_clean_document_serves_twice(documents: dict[str, list[Record]], planted: list[Planted]) -> None:
    used = [(one.source, one.id) for one in planted if one.in_place]
    used += [one.copy_of for one in planted if one.copy_of]
    assert len(set(used)) == len(used) > 0
    ids = {(source, record["id"]) for source, records in documents.items() for record in records}
    assert set(used) <= ids


def test_the_same_seed_gives_the_same_bytes(documents: dict[str, list[Record]], folder: Path, tmp_path: Path) -> None:
    reordered = dict(reversed(documents.items()))
    for seed in (3, 4):
        again = planting.plant(reordered, ITEMS, WORDS, share=0.2, seed=seed)
        planting.write_corpus(documents, again, tmp_path / str(seed), seed=seed)
    for path in sorted(folder.rglob("*.gz")):
        name = path.relative_to(folder)
        assert path.read_bytes() == (tmp_path / "3" / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "4" / name).read_bytes()


def test_copies_are_copies_in_a_source_of_their_language(
    documents: dict[str, list[Record]], planted: list[Planted]
) -> None:
    texts = {(source, record["id"]): record["text"] for source, records in documents.items() for record in records}
    copies = [one for one in planted if one.copy_of]
    assert {one.fault for one in copies} == {"duplicate", "near-duplicate"}
    assert {one.source == one.copy_of[0] for one in copies if one.copy_of} == {True, False}
    for one in copies:
        assert one.copy_of is not None
        assert one.source[:2] == one.copy_of[0][:2]
        assert (texts[one.copy_of] == one.text) == (one.fault == "duplicate")


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.03, 0.05])
def test_so_many_edits_as_said(documents: dict[str, list[Record]], lang: str, rate: float) -> None:
    chooser = random.Random(rate)
    for record in documents[f"{lang}_web"][:20]:
        text = record["text"]
        split: Callable[[str], list[str]] = (lambda t: list("".join(t.split()))) if lang == "zh" else str.split
        before, after = split(text), split(faults.edited(text, rate, lang, chooser))
        edits = max(1, round(rate * len(before)))
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        changed = sum(max(b - a, d - c) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal")
        assert changed >= 1
        assert abs(len(after) - len(before)) <= edits
        same = sum(block.size for block in matcher.get_matching_blocks())
        assert same >= len(before) - edits - 3, "the matcher may miss a few"


def test_mojibake_is_that_of_the_well_known_mistakes() -> None:
    assert faults.mojibake("中文", "utf-8 as latin-1") == "ä¸\xadæ\x96\x87"
    assert faults.mojibake("中文", "utf-8 as cp1252") == "ä¸\xadæ–‡"
    assert faults.mojibake("It’s “à”", "utf-8 as cp1252") == "Itâ€™s â€œÃ\xa0â€\x9d"
    assert faults.mojibake("你好", "utf-8 as gbk") == "浣犲ソ"
    assert faults.mojibake("你好", "gbk as latin-1") == "ÄãºÃ"
    assert faults.mojibake("天气很好", "锟斤拷").count("锟斤拷") >= 2


def test_every_garbled_text_differs_from_the_clean_one(planted: list[Planted]) -> None:
    garbled = [one for one in planted if one.fault == "mojibake"]
    assert garbled
    for one in garbled:
        assert one.text != one.clean
        if "utf-8 as latin-1" in one.kind:
            assert one.text.encode("latin-1").decode() == one.clean
        if "gbk as latin-1" in one.kind:
            assert one.text.encode("latin-1").decode("gbk") == one.clean


def test_secrets_are_valid_and_stand_where_the_truth_says(planted: list[Planted]) -> None:
    seen: Counter[str] = Counter()
    for one in planted:
        rest = one.text
        for secret in one.secrets:
            seen[secret.kind] += 1
            assert secret.text in secret.sentence
            assert rest.count(secret.sentence) == 1
            rest = rest.replace(secret.sentence, "")
            assert is_valid(secret.kind, secret.text)
        if one.secrets:
            assert "".join(rest.split()) == "".join(one.clean.split()), "nothing else has changed"
    assert set(seen) == {"id number", "phone", "bank card", "e-mail", "ip"}
    assert {bool(one.secrets) for one in planted if one.fault == "personal data"} == {True}


def is_valid(kind: str, text: str) -> bool:
    """By the rules of those who give the numbers out, written down once more."""
    digits = re.sub(r"\D", "", text)
    if kind == "id number":
        weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
        total = sum(weight * int(digit) for weight, digit in zip(weights, text, strict=False))
        return len(text) == 18 and "10X98765432"[total % 11] == text[-1]
    if kind == "bank card":
        doubled = [int(digit) * (2 - (len(digits) - place) % 2) for place, digit in enumerate(digits)]
        return len(digits) in (16, 19) and sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0
    if kind == "ip":
        return ipaddress.ip_address(text).is_global
    if kind == "e-mail":
        return re.fullmatch(r"[\w.]+@[\w-]+(\.[\w-]+)+", text) is not None
    chinese = re.fullmatch(r"(86)?1[3-9]\d{9}", digits)
    return bool(chinese or re.fullmatch(r"1?[2-9]\d{2}[2-9]\d{6}", digits))


def test_the_other_faults_are_what_they_are_called(planted: list[Planted]) -> None:
    items = {item.text for own in ITEMS.values() for item in own}
    for one in planted:
        lang = "zh" if one.source.startswith("zh") else "en"
        if one.fault == "tiny page":
            assert 0 < len(one.text) < 100
        elif one.fault == "advertisement":
            assert 100 < len(one.text) < 700
            assert re.search(r"\d{5}|\d{3}[ -]\d{4}|\d\.(cn|biz)", one.text), "it says whom to call"
        elif one.fault == "sensitive words":
            assert sum(one.text.count(word) for word in WORDS[lang]) > 10
        elif one.fault == "benchmark item":
            assert sum(item in one.text for item in items) == 1
        elif "repeated phrase" in one.kind:
            size = len(one.text) // 200
            assert len(set(one.text.split())) < 10 if lang == "en" else one.text[:size] * 200 == one.text
        elif "duplicated lines" in one.kind:
            lines = one.text.split("\n")
            assert len(lines) >= 15
            assert len(set(lines)) <= len(lines) / 15


def test_without_words_items_and_hosts_advertisements_take_their_place() -> None:
    ascii_only = {
        "en_math": [{"id": str(n), "text": f"{n} plus {n}", "lang": "en", "category": "m"} for n in range(90)]
    }
    planted = planting.plant(ascii_only, {}, {}, share=0.5)
    assert len(planted) == 45
    found = Counter(one.fault for one in planted)
    assert found["advertisement"] >= 5 * found["duplicate"] > 0
    assert not {"mojibake", "personal data", "sensitive words", "benchmark item", "self-repetition"} & set(found)


# --- scoring

NUMBERED_FROM = 1


def build(
    folder: Path,
    corpus: Path,
    keep: Callable[[str, Record], str | None],
    first: int = NUMBERED_FROM,
    reason: str = "too short",
) -> list[dict[str, Any]]:
    """A corpus of what `keep` makes of each record, written as the pipeline writes, and its score."""
    for source in SOURCES:
        output = FileOutput()
        output.begin(WorkFile(0, source, "", str(corpus / "documents" / source / source), "f"))
        early = Ledger()
        for number, record in enumerate(read(folder / "pretrain" / f"{source}.jsonl.gz"), first):
            text = keep(source, record)
            own_id = f"{source}/{source}:{number}"
            early.enter("low quality", 1)
            if text is None:
                early.drop("low quality", own_id, "", Drop(reason))
            else:
                output.write({"id": own_id, "text": text, "record_id": record["id"], "source": source}, "")
        output.finish()
        path = corpus / "1_cleaned" / source / f"{source}.ledger.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(orjson.dumps({"ledger": early.to_json()}))
    return score(folder, corpus)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert {"name", "unit", "ours", "peer", "peer_name", "ratio", "bar", "holds", "reason"} <= set(row)
        assert sum(row["how"].values()) in (0, row["documents"])
    return {row["name"]: row for row in rows}


@pytest.fixture(scope="module")
def truth(planted: list[Planted]) -> Mapping[tuple[str, str], Planted]:
    return {(one.source, one.id): one for one in planted}


def redacted(one: Planted) -> str:
    text = one.text
    for secret in one.secrets:
        text = text.replace(secret.text, secret.token)
    return text


@pytest.mark.parametrize("first", [0, 1])
def test_a_perfect_pipeline_catches_all_and_loses_nothing(
    folder: Path, tmp_path: Path, truth: Mapping[tuple[str, str], Planted], first: int
) -> None:
    def keep(source: str, record: Record) -> str | None:
        one = truth.get((source, record["id"]))
        return record["text"] if one is None else redacted(one) if one.secrets else None

    with every_example_kept():
        rows = by_name(build(folder, tmp_path, keep, first))
    secrets = sum(len(one.secrets) for one in truth.values())
    others = sum(not one.secrets for one in truth.values())
    caught = rows["caught: all planted faults"]
    assert (caught["documents"], caught["of"], caught["ours"]) == (secrets + others, secrets + others, 1.0)
    for name, row in rows.items():
        if name == "copies in the real text itself":
            assert row["documents"] == 0
        elif name.startswith("clean"):
            assert (row["documents"], row["ours"], row["holds"]) == (0, 0.0, True)
        else:
            assert row["ours"] == 1.0
            assert row["cases"] == []
            assert "personal" in name or set(row["how"]) <= {"low quality: too short"}
    assert (
        sum(row["of"] for name, row in rows.items() if name.startswith("caught") and "all" not in name) == caught["of"]
    )
    clean = sum(SOURCES.values()) - sum(one.in_place for one in truth.values())
    assert rows["clean documents lost: all"]["of"] == clean


def test_a_pipeline_that_does_nothing_catches_nothing(
    folder: Path, tmp_path: Path, truth: Mapping[tuple[str, str], Planted]
) -> None:
    rows = by_name(build(folder, tmp_path, lambda source, record: record["text"]))
    assert rows["caught: all planted faults"]["documents"] == 0
    assert rows["clean documents lost: all"]["documents"] == 0
    listed = {(case["source"], case["id"]) for row in rows.values() for case in row["cases"]}
    assert listed == set(truth), "every one is listed as missed"


def test_a_pipeline_that_drops_all_loses_all_clean_documents(folder: Path, tmp_path: Path) -> None:
    with every_example_kept():
        rows = by_name(build(folder, tmp_path, lambda source, record: None))
    for name, row in rows.items():
        if name.startswith("clean"):
            assert (row["ours"], row["holds"]) == (1.0, False)
        elif name.startswith("caught: personal data"):
            assert row["ours"] == 0.0, "dropping the document is not what was asked"
            assert row["cases"][0]["how"] == "document lost: low quality: too short"
        elif name.startswith("caught") and "all" not in name:
            assert row["ours"] == 1.0
    assert rows["clean documents lost: zh_web"]["how"] == {
        "low quality: too short": rows["clean documents lost: zh_web"]["of"]
    }


def test_copies_that_the_text_itself_has_are_no_losses(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(60))
    sources = {"a": [("1", text)], "b": [("2", text.replace("word30", "other")), ("3", text[: len(text) // 4])]}
    (tmp_path / "pretrain").mkdir()
    for source, records in sources.items():
        with gzip.open(tmp_path / "pretrain" / f"{source}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"id": name, "text": text}) + "\n" for name, text in records)
    assert copies_among({("b", "2"), ("b", "3")}, tmp_path, {("a", "1")}) == {("b", "2")}
    assert copies_among({("b", "2")}, tmp_path, set()) == set()


def test_what_may_be_mended_is_judged_by_its_text(
    folder: Path, tmp_path: Path, documents: dict[str, list[Record]], truth: Mapping[tuple[str, str], Planted]
) -> None:
    originals = {one.copy_of for one in truth.values() if one.copy_of}
    damaged = next(key for key, one in truth.items() if one.secrets)

    def keep(source: str, record: Record) -> str | None:
        key = source, record["id"]
        one = truth.get(key)
        if one is None:
            return None if key in originals else record["text"]
        if one.secrets:
            text = redacted(one)
            return (
                text
                if key != damaged
                else "\n".join(secret.sentence.replace(secret.text, secret.token) for secret in one.secrets)
            )
        if one.fault == "mojibake":
            return one.clean.replace("\n", "\n\n")
        if one.fault == "self-repetition":
            return one.text[: len(one.text) // 6]
        return one.text if one.copy_of else None

    rows = by_name(build(folder, tmp_path, keep))
    for name, row in rows.items():
        if "mojibake" in name:
            assert row["how"] == {"mended": row["of"]}
        elif "self-repetition" in name:
            assert row["how"] == {"shortened": row["of"]}
        elif "duplicate" in name:
            assert row["ours"] == 1.0
            assert all(how.startswith("the other: ") for how in row["how"])
        elif name.startswith("clean"):
            assert row["documents"] == 0, "the copy stays in its place"
    missed = [case for name, row in rows.items() if "personal data" in name for case in row["cases"]]
    assert len(missed) == len(truth[damaged].secrets)
    assert {case["how"] for case in missed} == {"the rest of the document was damaged"}


@pytest.mark.parametrize("how", ["half", "more", "nothing", "other token"])
def test_personal_data_must_be_replaced_exactly(
    folder: Path, tmp_path: Path, truth: Mapping[tuple[str, str], Planted], how: str
) -> None:
    def keep(source: str, record: Record) -> str | None:
        one = truth.get((source, record["id"]))
        if one is None or not one.secrets:
            return record["text"]
        text = one.text
        for secret in one.secrets:
            if how == "half":
                text = text.replace(secret.text, secret.token + secret.text[-4:])
            elif how == "more":
                text = text.replace(secret.sentence, secret.token)
            elif how == "nothing":
                text = text.replace(secret.text, "  ".join(secret.text))  # white space does not hide it
            else:
                text = text.replace(secret.text, "<|ip|>" if secret.kind != "ip" else "<|phone|>")
        return text

    rows = by_name(build(folder, tmp_path, keep))
    personal = [row for name, row in rows.items() if "personal data" in name]
    assert len(personal) == 5
    for row in personal:
        if how == "other token":
            assert row["ours"] == 1.0
            assert list(row["how"]) == ["replaced by <|phone|>" if "data: ip" in row["name"] else "replaced by <|ip|>"]
        else:
            assert row["ours"] == 0.0
            expected = "kept: " if how == "nothing" else "replaced in part, or more than it: "
            assert all(case["how"].startswith(expected) for case in row["cases"])


def test_clean_documents_that_are_lost_are_counted_by_source_and_reason(
    folder: Path, tmp_path: Path, documents: dict[str, list[Record]], truth: Mapping[tuple[str, str], Planted]
) -> None:
    touched = set(truth) | {one.copy_of for one in truth.values() if one.copy_of}
    clean = [record["id"] for record in documents["zh_web"] if ("zh_web", record["id"]) not in touched]
    lost = set(clean[:30])

    def keep(source: str, record: Record) -> str | None:
        return None if record["id"] in lost else record["text"]

    rows = by_name(build(folder, tmp_path, keep))
    row = rows["clean documents lost: zh_web"]
    assert row["documents"] == 30
    assert row["holds"] is False
    assert {case["id"] for case in row["cases"]} <= lost
    # Without every example the ledger knows of twenty.
    assert row["how"]["low quality: too short"] == EXAMPLES
    assert sum(row["how"].values()) == 30
    assert rows["clean documents lost: en_web"]["holds"] is True


def test_both_originals_and_copies_lost_is_a_loss(
    folder: Path, tmp_path: Path, truth: Mapping[tuple[str, str], Planted]
) -> None:
    pairs = {one.copy_of for one in truth.values() if one.copy_of}
    gone = pairs | {key for key, one in truth.items() if one.copy_of}
    rows = by_name(
        build(folder, tmp_path, lambda source, record: None if (source, record["id"]) in gone else record["text"])
    )
    assert rows["clean documents lost: all"]["documents"] == len(pairs)


def test_every_example_kept_is_undone() -> None:
    ledger = Ledger()
    with every_example_kept():
        for number in range(100):
            ledger.drop("step", f"a:{number}", "", Drop("reason"))
    assert len(ledger.steps["step"].dropped["reason"].examples) == 100
    other = Ledger()
    for number in range(100):
        other.drop("step", f"a:{number}", "", Drop("reason"))
    assert len(other.steps["step"].dropped["reason"].examples) == EXAMPLES


def test_the_command_plants_and_scores(tmp_path: Path, documents: dict[str, list[Record]]) -> None:
    data = tmp_path / "data"
    for source, records in documents.items():
        (data / "pretrain").mkdir(parents=True, exist_ok=True)
        (data / "pretrain" / f"{source}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, records))))
    question = {
        "question": "这道题目是专门为测试而写的，请问下面哪一个选项是正确的答案",
        "choices": ["甲", "乙"],
        "answer": "A",
    }
    (data / "eval").mkdir()
    (data / "eval" / "cmmlu_test.jsonl.gz").write_bytes(gzip.compress(orjson.dumps(question)))
    (tmp_path / "words.txt").write_text("# words\n禁词甲\t2\nbadword\n", encoding="utf-8")
    folder = tmp_path / "planted"
    command = [sys.executable, str(ROOT / "benchmarks" / "corpus_planted.py")]
    options = ["--data", str(data), "--words", str(tmp_path / "words.txt")]
    done = subprocess.run([*command, "plant", str(folder), *options], capture_output=True, text=True, check=True)
    planted = planting.read_truth(folder)
    assert len(planted) == sum(round(0.05 * count) for count in SOURCES.values())
    assert done.stdout.startswith(f"{len(planted)} faulty documents in 1,080")
    truth = {(one.source, one.id): one for one in planted}
    corpus = tmp_path / "corpus"
    rows = build(folder, corpus, lambda source, record: None if (source, record["id"]) in truth else record["text"])
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [*command, "score", str(folder), str(corpus), "--json", str(out)], capture_output=True, text=True, check=True
    )
    assert orjson.loads(out.read_bytes())["rows"] == rows
    assert "clean documents lost: all" in done.stdout
    assert "holds (under 0.01)" in done.stdout


def test_items_are_as_a_page_quotes_them(tmp_path: Path) -> None:
    long = "Which of these statements about the boiling of water on a mountain is true?"
    records = {
        "mmlu_test": [
            {"question": long, "choices": ["one", "two"], "answer": "B"},
            {"question": "Why?", "answer": "A"},
        ],
        "gsm8k_test": [{"question": long, "answer": "Because 1+1=2\n#### 2"}],
        "hellaswag_val": [{"context": long, "label": 1, "endings": ["no.", "yes."]}],
    }
    for name, lines in records.items():
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, lines))))
    assert planting.read_items(tmp_path) == {
        "zh": [],
        "en": [
            Item("mmlu_test.jsonl.gz:1", f"{long}\nA. one\nB. two\nAnswer: B"),
            Item("gsm8k_test.jsonl.gz:1", f"{long}\nAnswer: Because 1+1=2\n#### 2"),
            Item("hellaswag_val.jsonl.gz:1", f"{long} yes."),
        ],
    }


def test_evaluation_files_take_turns() -> None:
    items = [Item(f"{name}:{number}", "") for name, count in (("large", 900), ("small", 20)) for number in range(count)]
    ordered = planting.in_turns(items, random.Random(0))
    assert sorted(item.where for item in ordered) == sorted(item.where for item in items)
    first = [item.where for item in ordered[:-41:-1]]
    assert Counter(where.partition(":")[0] for where in first) == {"large": 20, "small": 20}
    assert max(int(where.partition(":")[2]) for where in first if where.startswith("large")) > 100


def test_truth_survives_its_file(tmp_path: Path, planted: list[Planted]) -> None:
    hostile = replace(planted[0], text="\x00\u2028\ufffd\n", clean="", copy_of=("a", "b"))
    planting.write_corpus({}, [hostile], tmp_path)
    assert planting.read_truth(tmp_path) == [hostile]
