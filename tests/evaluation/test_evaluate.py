"""`tools/evaluate.py` on a run that was trained here, over questions written here."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from mindllm_engine.distributed.process_group import World
from mindllm_engine.errors import CheckpointError, ConfigError, DataError
from mindllm_engine.evaluation.evaluate import EvaluateArguments, evaluate
from mindllm_engine.evaluation.export.import_hf import save_weights
from mindllm_engine.evaluation.readings import READINGS
from mindllm_engine.training.checkpoint import load_state
from mindllm_engine.training.weights import find_checkpoint, load_model
from tests.evaluation.harness_models import TEXTS, byte_level_tokenizer
from tests.training.tiny_run import ROOT, train_here, write_config, write_tokens

ALONE = World(0, 1, 0, torch.device("cpu"))


def mmlu(subject: str, count: int, first: int) -> list[dict]:
    return [
        {
            "subject": subject,
            "question": f"How much is {number} plus 2?",
            "choices": [str(number + 2), "no one knows", str(number), "猫"],
            "answer": "ABCD"[number % 4],
        }
        for number in range(first, first + count)
    ]


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def gsm8k(count: int) -> list[dict]:
    return [{"question": f"What is {n} plus 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(count)]


@pytest.fixture(scope="module")
def world_of_questions(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(run folder, data folder, suite)"""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = byte_level_tokenizer(folder / "tokenizer", TEXTS)
    for number, lang in enumerate(("en", "zh")):
        write_tokens(folder / f"mine_{lang}", lang, 50, number, tokenizer.hash)
    config = write_config(
        folder,
        data__sources={lang: str(folder / f"mine_{lang}") for lang in ("en", "zh")},
        data__heldout={},
        data__seq_len=32,
        model__mindllm={
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "ffn_size": 48,
            "n_layers": 2,
            "n_heads": 2,
            "max_seq_len": 512,
        },
        train__steps=2,
        train__eval_every=100,
        train__checkpoint_every=2,
    )
    train_here(config)
    shutil.copy(tokenizer.model_path, folder / "run" / "tokenizer.model")
    data = folder / "data"
    subjects = ("anatomy", "astronomy")
    write_lines(data / "eval" / "mmlu_test.jsonl.gz", [record for name in subjects for record in mmlu(name, 9, 20)])
    write_lines(data / "eval" / "mmlu_dev.jsonl.gz", [record for name in subjects for record in mmlu(name, 5, 0)])
    write_lines(data / "eval" / "gsm8k_test.jsonl.gz", gsm8k(4))
    suite = folder / "suite.yaml"
    entries = [
        {"task": "local_mmlu", "num_fewshot": 2, "metric": "acc", "chance": 0.25, "paper": "mmlu"},
        {"task": "local_gsm8k", "num_fewshot": 1, "metric": "exact_match", "chance": 0.0},
    ]
    suite.write_text(yaml.safe_dump({"about": "a trial", "tasks": entries}))
    return folder / "run", data, suite


def arguments(where: tuple[Path, Path, Path], out: Path, **changes) -> EvaluateArguments:
    run, data, suite = where
    given = EvaluateArguments(run=str(run), out=str(out), suite=str(suite), data=str(data))
    return replace(given, **changes)


@pytest.fixture(scope="module")
def evaluated(world_of_questions, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("evaluated")
    results = evaluate(arguments(world_of_questions, out, readings=True), ALONE)
    assert results is not None
    return out, results


def without_time(results: dict) -> dict:
    entries = {name: {**entry, "seconds": 0} for name, entry in results["entries"].items()}
    return json.loads(json.dumps({**results, "entries": entries}))


def test_every_question_is_answered_and_written_down(evaluated) -> None:
    out, results = evaluated
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    score = results["entries"]["local_mmlu"]["scores"][0]
    assert score["questions"] == 18
    with gzip.open(out / "tasks" / "local_mmlu.samples.jsonl.gz", "rt") as file:
        samples = [json.loads(line) for line in file]
    right = [
        max(range(4), key=lambda choice: float(sample["filtered_resps"][choice][0])) == sample["target"]
        for sample in samples
    ]
    assert len(samples) == 18
    assert score["value"] == pytest.approx(sum(right) / 18)
    assert score["low"] < score["value"] < score["high"] or score["value"] in (0, 1)
    assert samples[0]["arguments"][0][0].count("How much is") == 3  # two examples before it


def test_readings_hold_the_harness_own_accuracy(evaluated) -> None:
    found = evaluated[1]["entries"]["local_mmlu"]
    assert {len(each["right"]) for each in found["readings"].values()} == {len(READINGS)}
    right = sum(each["right"]["answer, sum"] for each in found["readings"].values())
    assert right / 18 == pytest.approx(found["scores"][0]["value"])
    # All answers are one letter: so many tokens and bytes each, and the same prompt before them.
    for each in found["readings"].values():
        assert len(set(each["right"].values())) == 1


def test_the_table_says_what_is_chance(evaluated) -> None:
    out, results = evaluated
    text = (out / "results.md").read_text()
    assert "| local_mmlu | 2 | acc | 18 |" in text
    assert "Indistinguishable from chance" in text
    assert results["entries"]["local_mmlu"]["scores"][0]["at_chance"]
    assert "answer, mean a byte" in text
    assert "Only the first" not in text


def test_finished_tasks_are_not_asked_again_unless_something_changed(world_of_questions, evaluated) -> None:
    out, results = evaluated
    files = {name: (out / "tasks" / f"{name}.json") for name in ("local_mmlu", "local_gsm8k")}
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    files["local_gsm8k"].unlink()  # as if the call had been killed before it
    again = evaluate(arguments(world_of_questions, out, readings=True), ALONE)
    assert without_time(again) == without_time(results)
    assert files["local_mmlu"].stat().st_mtime_ns == before["local_mmlu"]
    assert files["local_gsm8k"].stat().st_mtime_ns != before["local_gsm8k"]


def test_a_limit_is_said_and_asks_anew(world_of_questions, evaluated, tmp_path) -> None:
    shutil.copytree(evaluated[0], tmp_path / "out")
    limited = evaluate(arguments(world_of_questions, tmp_path / "out", limit=3, readings=True), ALONE)
    assert limited["entries"]["local_mmlu"]["scores"][0]["questions"] == 6
    assert "Only the first 3 questions" in (tmp_path / "out" / "results.md").read_text()


def test_changed_questions_are_asked_anew(world_of_questions, evaluated, tmp_path) -> None:
    """As many questions of as many bytes, the answers alone differ; the task that they are of, and no other."""
    shutil.copytree(evaluated[0], tmp_path / "out")
    shutil.copytree(world_of_questions[1], tmp_path / "data")
    given = arguments(world_of_questions, tmp_path / "out", data=str(tmp_path / "data"), readings=True)
    files = {name: tmp_path / "out" / "tasks" / f"{name}.json" for name in ("local_mmlu", "local_gsm8k")}
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    evaluate(given, ALONE)  # the same questions in another place
    assert before == {name: file.stat().st_mtime_ns for name, file in files.items()}
    records = [record for name in ("anatomy", "astronomy") for record in mmlu(name, 9, 20)]
    for record in records:
        record["answer"] = "A"
    write_lines(tmp_path / "data" / "eval" / "mmlu_test.jsonl.gz", records)
    evaluate(given, ALONE)
    assert [files[name].stat().st_mtime_ns == before[name] for name in files] == [False, True]
    with gzip.open(tmp_path / "out" / "tasks" / "local_mmlu.samples.jsonl.gz", "rt") as file:
        assert {json.loads(line)["target"] for line in file} == {0}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"settings": 1}', b"\xff"], ids=["empty", "list", "other", "bytes"])
def test_damaged_results_are_asked_anew(world_of_questions, evaluated, tmp_path, content: bytes) -> None:
    shutil.copytree(evaluated[0], tmp_path / "out")
    (tmp_path / "out" / "tasks" / "local_gsm8k.json").write_bytes(content)
    again = evaluate(arguments(world_of_questions, tmp_path / "out", readings=True), ALONE)
    assert without_time(again) == without_time(evaluated[1])


def test_a_suites_own_limits_hold_and_are_said(world_of_questions, tmp_path) -> None:
    """Of each task by itself; the command line's holds beside it where it is lower."""
    suite = tmp_path / "suite.yaml"
    entries = [
        {"task": "local_mmlu", "num_fewshot": 0, "limit": 2},
        {"task": "local_gsm8k", "num_fewshot": 0, "metric": "exact_match"},
    ]
    suite.write_text(yaml.safe_dump({"tasks": entries}))
    given = arguments(world_of_questions, tmp_path / "out", suite=str(suite))
    for limit, counts in ((None, (4, 4)), (3, (4, 3)), (1, (2, 1))):
        found = evaluate(replace(given, limit=limit), ALONE)["entries"]
        assert [found[name]["scores"][0]["questions"] for name in ("local_mmlu", "local_gsm8k")] == list(counts)
        text = (tmp_path / "out" / "results.md").read_text()
        assert ("Not all questions were asked of local_mmlu (the first 2 of each of its tasks)." in text) == (not limit)
        assert (f"Only the first {limit} questions" in text) == bool(limit)


@pytest.mark.parametrize(("task", "shots", "found"), [("local_mmlu", 6, 5), ("local_gsm8k", 4, 3)])
def test_more_examples_than_there_are(world_of_questions, tmp_path, task: str, shots: int, found: int) -> None:
    """Of GSM8K the questions themselves are the examples, and none stands before itself."""
    suite = tmp_path / "suite.yaml"
    for wanted in (shots, found):
        suite.write_text(yaml.safe_dump({"tasks": [{"task": task, "num_fewshot": wanted}]}))
        given = arguments(world_of_questions, tmp_path / "out", suite=str(suite), limit=1)
        if wanted == found:
            assert evaluate(given, ALONE) is not None
        else:
            with pytest.raises(DataError, match=rf"task {task}.*: num_fewshot is {shots}, and there are {found} exam"):
                evaluate(given, ALONE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"doc_to_text": "{{question}}"},
            r"task own: its questions cannot be loaded \(UndefinedError: 'question' .*columns",
        ),
        ({"doc_to_text": "{{q if a else r}}"}, "task own, record 1: its prompt cannot be made"),
        ({"doc_to_choice": "{{c}"}, "task own"),
        ({"metric_list": [{"metric": "accuracy_of_mine"}]}, "task own"),
        ({"output_type": "multiple"}, "task own"),
        ({"test_split": "tset"}, "task own"),
    ],
    ids=["column", "second record", "template", "metric", "kind", "split"],
)
def test_a_task_file_of_the_users_own_that_cannot_be_asked(world_of_questions, tmp_path, changes, message) -> None:
    lines = [{"q": f"What is {n}?", "c": ["one", "two"], "a": n % 2 - 1} for n in range(5)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(task | changes))
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"tasks": [{"task": "own"}], "include_path": ["."]}))
    with pytest.raises(DataError, match=message) as failure:
        evaluate(arguments(world_of_questions, tmp_path / "out", suite=str(suite)), ALONE)
    assert len(str(failure.value).splitlines()) == 1
    assert not (tmp_path / "out" / "results.json").exists()


def tool(ranks: int, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--"] if ranks > 1 else []
    )
    command = [sys.executable, *launcher, str(ROOT / "tools" / "evaluate.py"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=280)


def test_two_ranks_give_what_one_gives(world_of_questions, evaluated, tmp_path) -> None:
    run, data, suite = world_of_questions
    options = ["--run", str(run), "--out", str(tmp_path), "--suite", str(suite), "--data", str(data)]
    done = tool(2, *options, "--readings", "true")
    assert done.returncode == 0, done.stderr
    assert without_time(json.loads((tmp_path / "results.json").read_text())) == without_time(evaluated[1])
    assert "| local_gsm8k |" in done.stdout
    assert [line.split(" in ")[0] for line in done.stderr.splitlines() if "asked" in line or not line] == [
        "asked local_mmlu",
        "asked local_gsm8k",
    ]  # and no empty lines, which lm-eval's bars leave
    for name in ("local_mmlu", "local_gsm8k"):
        texts = [
            gzip.decompress((folder / "tasks" / f"{name}.samples.jsonl.gz").read_bytes()).decode()
            for folder in (tmp_path, evaluated[0])
        ]
        theirs, ours = ([json.loads(line) for line in text.splitlines()] for text in texts)
        assert len(theirs) == len(ours)
        for one, other in zip(theirs, ours, strict=True):
            assert one["arguments"] == other["arguments"]
            for a, b in zip(one["resps"], other["resps"], strict=True):  # a text each, or (log-likelihood, is greedy)
                assert a == (b if isinstance(b[0], str) else [[pytest.approx(b[0][0], abs=1e-5), b[0][1]]])


@pytest.mark.slow  # the nearest of lm-eval's 14,000 tasks is sought
def test_an_unknown_task_is_named_with_the_nearest(world_of_questions, tmp_path) -> None:
    run, data, suite = world_of_questions
    wrong = tmp_path / "suite.yaml"
    wrong.write_text(suite.read_text().replace("local_gsm8k", "local_gsm9k"))
    done = tool(1, "--run", str(run), "--out", str(tmp_path / "out"), "--suite", str(wrong), "--data", str(data))
    assert done.returncode == 2
    assert "there is no task local_gsm9k; did you mean" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_folder_without_a_checkpoint_is_refused(world_of_questions, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        evaluate(arguments(world_of_questions, tmp_path / "out", run=str(tmp_path)), ALONE)


def test_a_file_in_place_of_the_folder_for_results(world_of_questions, tmp_path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match=r"out/.*: cannot be written: Not a directory"):
        evaluate(arguments(world_of_questions, tmp_path / "out"), ALONE)
    assert (tmp_path / "out").read_text() == "mine"


def test_another_tokenizer_in_the_run_is_refused(world_of_questions, tmp_path) -> None:
    shutil.copytree(world_of_questions[0], tmp_path / "run")
    other = byte_level_tokenizer(tmp_path / "other", ["quite another text"], vocab_size=300)
    shutil.copy(other.model_path, tmp_path / "run" / "tokenizer.model")
    with pytest.raises(DataError, match=r"tokenizer\.model: is not the tokenizer of .*; put the run's own"):
        evaluate(arguments(world_of_questions, tmp_path / "out", run=str(tmp_path / "run")), ALONE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_score_nothing(world_of_questions, tmp_path, value: float) -> None:
    """The largest of four NaN is the first: such a network would always answer A."""
    shutil.copytree(world_of_questions[0], tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run")
    model, config = load_model(checkpoint, torch.device("cpu"))
    with torch.no_grad():
        model.embedding[3, 3] = value
    state = load_state(checkpoint)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    save_weights(model, config, state.tokenizer_hash, tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="embedding holds numbers that are NaN or infinite"):
        evaluate(arguments(world_of_questions, tmp_path / "out", run=str(tmp_path / "run")), ALONE)


def test_a_record_without_a_column_is_named(world_of_questions, tmp_path) -> None:
    records = mmlu("anatomy", 3, 0)
    del records[1]["choices"]
    shutil.copytree(world_of_questions[1], tmp_path / "data")
    write_lines(tmp_path / "data" / "eval" / "mmlu_test.jsonl.gz", records)
    with pytest.raises(DataError, match=r"mmlu_test.jsonl.gz.*2.*choices"):
        evaluate(arguments(world_of_questions, tmp_path / "out", data=str(tmp_path / "data")), ALONE)


@pytest.mark.parametrize(
    ("changes", "message"), [({"suite": None}, "either"), ({"tasks": ["a"]}, "either"), ({"limit": 0}, "limit")]
)
def test_options_that_cannot_be(world_of_questions, tmp_path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(arguments(world_of_questions, tmp_path, **changes), ALONE)
