"""Records as token files: what of them is learnt, dropped, cut or held out, and what the files are found again by."""

import itertools
from pathlib import Path

import numpy as np
import orjson
import pytest

from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.data.loader import IGNORED, Loader
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from mindllm_engine.training.setup import make_plan
from mindllm_engine.tuning.token_documents import Document, RecordsReport, check_document
from mindllm_engine.tuning.tune import prepare
from tests.tuning.tiny_tuning import (
    SEQ_LEN,
    base_run,
    launch,
    read_tuning,
    sums,
    two_sources,
    write_records,
    write_tuning,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp("base"), steps=1)


@pytest.fixture
def tuning(tmp_path: Path, base: Path) -> Path:
    return write_tuning(tmp_path, base, two_sources(tmp_path))


def test_only_answers_and_their_ends_are_learnt_and_text_is_counted(tuning: Path, base: Path) -> None:
    prepare(read_tuning(tuning))
    folder = next((tuning.parent / "tokens").glob("sums_en-*"))
    tokenizer = open_tokenizer(base / "tokenizer.model")
    records = {
        f"{record['instruction']}\n{record['input']}".removesuffix("\n"): record["output"] for record in sums(120, 1)
    }
    seen = 0
    answers = 0
    for part in ("train", "heldout"):
        file = TokenFile(folder / part)
        assert file.mask is not None
        start = 0
        part_bytes = 0
        for number, length in enumerate(file.lengths.tolist()):
            ids, mask = file.document(number).tolist(), file.mask[start : start + length].astype(bool)
            start += length
            user, end, assistant = (tokenizer.special_id(f"<|{name}|>") for name in ("user", "end", "assistant"))
            assert ids[:2] == [tokenizer.bos_id, user]
            assert ids[-2:] == [end, tokenizer.eos_id]
            border = ids.index(assistant) + 1
            question, answer = tokenizer.decode(ids[2 : border - 2]), tokenizer.decode(ids[border:-2])
            assert records[question] == answer
            assert ids[border - 2] == end
            assert not mask[:border].any()
            assert mask[border:].all()
            part_bytes += len(answer.encode())
            answers += int(mask.sum())
            seen += 1
        assert file.manifest.text_bytes == part_bytes
    report = orjson.loads((folder / "report.json").read_bytes())
    assert seen == 120 == report["train"]["records"] + report["heldout"]["records"]
    assert answers == report["train"]["learnt"] + report["heldout"]["learnt"]


def test_equal_records_fall_on_one_side(tmp_path: Path, base: Path) -> None:
    write_records(tmp_path / "twice.jsonl", sums(60, 1) * 2)
    config = write_tuning(
        tmp_path, base, {"twice": {"path": str(tmp_path / "twice.jsonl")}}, tuning__heldout=0.3, train__steps=1
    )
    prepare(read_tuning(config))
    folder = next((tmp_path / "tokens").glob("twice-*"))
    sides = []
    for part in ("train", "heldout"):
        file = TokenFile(folder / part)
        sides.append({file.document(number).tobytes() for number in range(file.documents)})
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_bad_records_are_counted_by_line_and_never_trained_on(tmp_path: Path, base: Path) -> None:
    good = sums(40, 1)
    long_answer = {"instruction": "Count.", "output": "one two three " * 60}
    bad = [
        {"instruction": "Say nothing.", "input": "", "output": ""},
        {"instruction": "Say nothing.", "output": " \n\t"},
        "{not json",
        long_answer,
        {"messages": [{"role": "user", "content": "And?"}]},
    ]
    path = write_records(tmp_path / "mixed.jsonl", [*good[:20], *bad, *good[20:]])
    config = write_tuning(tmp_path, base, {"mixed": {"path": str(path)}}, tuning__heldout=0.0, train__steps=1)
    report = "\n".join(prepare(read_tuning(config)).reports["mixed"].lines("mixed"))
    for line in (
        "mixed: 40 records",
        "dropped 1: empty response",
        "dropped 1: response of only whitespace",
        "dropped 1: no JSON object",
        f"dropped 1: longer than {SEQ_LEN + 1} tokens",
        "mixed.jsonl:21: empty response",
        "mixed.jsonl:22: response of only whitespace",
        "mixed.jsonl:23: no JSON object",
        f"mixed.jsonl:24: longer than {SEQ_LEN + 1} tokens",
        "mixed.jsonl:25: the last message is not the assistant's",
    ):
        assert line in report, line
    folder = next((tmp_path / "tokens").glob("mixed-*"))
    assert TokenFile(folder / "train").documents == 40
    # The files are there, so only the option decides now.
    refused = launch("tune.py", "--config", str(config), "--tuning.bad_records", "refuse")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "mixed.jsonl:21: empty response (the first of 4 bad records)" in refused.stderr


def test_long_questions_are_cut_at_their_end_and_answers_never(tmp_path: Path, base: Path) -> None:
    question = "Add the numbers. " + " and ".join(str(number % 10) for number in range(80))
    records = [*sums(30, 1), {"instruction": question, "output": "The sum of 3 and 4 is 7."}]
    records.append({"instruction": "Add.", "output": "The sum is 7. " * 40})
    path = write_records(tmp_path / "long.jsonl", records)
    config = write_tuning(
        tmp_path, base, {"long": {"path": str(path)}}, tuning__heldout=0.0, tuning__long_records="cut", train__steps=1
    )
    prepare(read_tuning(config))
    folder = next((tmp_path / "tokens").glob("long-*"))
    report = orjson.loads((folder / "report.json").read_bytes())
    assert list(report["cut"].values()) == [1]
    assert list(report["too_long"].values()) == [1]
    assert report["train"]["records"] == 31
    assert report["examples"][0].startswith("long.jsonl:31: ")
    assert report["examples"][1].startswith("long.jsonl:32: ")
    file = TokenFile(folder / "train")
    tokenizer = open_tokenizer(base / "tokenizer.model")
    longest = int(np.argmax(file.lengths))
    ids = file.document(longest).tolist()
    assert SEQ_LEN - 2 <= len(ids) <= SEQ_LEN + 1
    assistant = ids.index(tokenizer.special_id("<|assistant|>"))
    assert question.startswith(tokenizer.decode(ids[2 : assistant - 1]))
    assert tokenizer.decode(ids[assistant + 1 : -2]) == "The sum of 3 and 4 is 7."
    assert ids[-1] == tokenizer.eos_id


def test_another_template_or_text_makes_other_token_files(tuning: Path) -> None:
    made: set[str] = set()
    for options in (
        [],
        ["--tuning.template.user", "Question: {content}\n"],
        ["--tuning.heldout", "0.2"],
        ["--tuning.long_records", "cut"],
        ["--data.seq_len", "60"],
    ):
        prepare(read_tuning(tuning, *options))
        before, made = made, {folder.name for folder in (tuning.parent / "tokens").glob("sums_*")}
        assert len(made) == len(before) + 2, options
    with (tuning.parent / "en.jsonl").open("a") as file:
        file.write('{"instruction": "Hi", "output": "Hello"}\n')
    prepare(read_tuning(tuning))
    assert len(list((tuning.parent / "tokens").glob("sums_*"))) == len(made) + 1


def test_a_source_of_which_all_is_held_out_says_so(tuning: Path) -> None:
    with pytest.raises(
        DataError, match=r"en\.jsonl: no record is left to train on; all \d+ are held out; lower tuning"
    ):
        prepare(read_tuning(tuning, "--tuning.heldout", "0.999999"))


def test_a_report_of_many_reasons_stays_short() -> None:
    report = RecordsReport()
    for number in range(1000):
        report.note(report.bad, f"a.jsonl:{number}", f"reason {number // 3}")
    report.note(report.bad, "a.jsonl:1000", "reason 7")
    lines = report.lines("a")
    assert len(lines) < 20
    assert lines[1] == "a: dropped 4: reason 7"  # the most frequent one first
    assert sum(int(line.split()[2].rstrip(":")) for line in lines if " dropped " in line) == 1001


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([1, 5, 6, 2], [0, 0, 0, 0], "no token of it is learnt"),
        ([1, 5, 6, 7], [0, 0, 1, 1], "does not end in </s>"),
        ([1, 5, 6, 2], [0, 0, 1, 0], "a </s> in it is not learnt"),
        ([1, 5, 2, 6, 2], [0, 0, 0, 1, 1], "a </s> in it is not learnt"),
        ([1, 5, 6, 2], [0, 0, 1, 1], None),
        ([2, 5, 6, 2], [0, 0, 1, 1], None),  # one symbol for both ends
    ],
)
def test_what_must_never_be_trained_on_is_refused(
    base: Path, ids: list[int], mask: list[int], message: str | None
) -> None:
    document = Document("a.jsonl:3", b"", np.array(ids, np.int32), np.array(mask, np.uint8), 1)
    tokenizer = open_tokenizer(base / "tokenizer.model")
    if message is None:
        check_document(document, tokenizer)
        assert document.mask.any()
        return
    with pytest.raises(DataError, match=message) as caught:
        check_document(document, tokenizer)
    assert str(caught.value).startswith("a.jsonl:3: ")


def test_places_that_no_record_fills_are_never_the_end_symbol(tuning: Path) -> None:
    run = prepare(read_tuning(tuning)).run
    files = {name: TokenFile(prefix) for name, prefix in run.data.sources.items()}
    plan = make_plan(run, dict(files))
    loader = Loader(plan, list(files.values()), run.model.selected.vocab_size, 0, 1)
    batch = loader.read(np.arange(plan.samples))
    learnt_before = False
    padding = 0
    ends = 0
    for begin, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        tokens, targets = batch.tokens[begin:end], batch.targets[begin:end]
        if int(tokens[0]) != 1:  # every record begins with <s>
            assert not tokens.any()
            assert (targets == IGNORED).all()
            padding += end - begin
        else:
            learnt_before |= bool((targets != IGNORED).any())
            ends += int((targets == 2).sum())
    assert learnt_before
    assert padding > 0
    assert ends == sum(1 for begin in batch.cu_seqlens.tolist()[:-1] if int(batch.tokens[begin]) == 1)
