"""Tasks over local files ask what lm-eval's own tasks ask, to the character, and refuse bad files before anything runs.

The oracle for prompts is lm-eval's own task, built by lm-eval from its own file, with the same records handed to it in
the columns of the hub.
"""

import functools
import gzip
import itertools
import json
import logging
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.group_averages import group_averages
from mindllm_engine.evaluation.local_tasks import ARITHMETIC, LOCAL_BENCHMARKS, lm_eval_tasks
from mindllm_engine.evaluation.suites import Suite, SuiteTask, build_tasks, open_suite, read_suite
from mindllm_engine.evaluation.task_data import SHAPES, check_task_data
from tests.evaluation.conftest import sums, write_lines

pytest.importorskip("lm_eval")

CONFIGS = Path(__file__).parents[2] / "configs"
SHOTS = 3
# Examples come from the questions that are asked; lm-eval leaves the question itself out for a split called test.
TEST_ONLY = {"training_split": None, "validation_split": None, "test_split": "test", "fewshot_split": "test"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise AssertionError("a local task reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def ours(task: str, data: Path, folder: Path, shots: int = SHOTS) -> Any:
    suite = Suite(Path("test"), "", (SuiteTask(task, shots),))
    (built,) = build_tasks(suite, open_suite(suite, folder, data))
    built.set_fewshot_seed(1234)
    return built


def lm_evals(task: str, folder: str, splits: dict[str, list[dict[str, Any]]], **changes: Any) -> Any:
    """lm-eval's own task, with records in the place of its data set."""
    import datasets

    manager = _manager(folder)
    found = {split: datasets.Dataset.from_list(records) for split, records in splits.items()}
    change = {"task": task, "custom_dataset": lambda **_: found, **changes}
    built = manager.load({"group": "test", "task": [change]})["tasks"][task]
    built.set_config("num_fewshot", SHOTS)
    built.set_fewshot_seed(1234)
    return built


@functools.cache
def _manager(folder: str) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=lm_eval_tasks() / folder, include_defaults=False)


def asked(task: Any) -> Iterator[tuple[str, Any, list[Any]]]:
    """(prompt with its examples, target, what the model is handed) of the first fifty questions."""
    for number, doc in enumerate(itertools.islice(task.eval_docs, 50)):
        prompt = task.fewshot_context(doc, task.config.num_fewshot)
        requests = task.construct_requests(doc, prompt, metadata=("", number, 1))
        handed = [one.arguments for one in (requests if isinstance(requests, list) else [requests])]
        yield prompt, task.doc_to_target(doc), handed


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def hub_mmlu(path: Path, subject: str) -> list[dict[str, Any]]:
    return [{**r, "answer": "ABCD".index(r["answer"])} for r in read(path) if r["subject"] == subject]


def hub_cmmlu(path: Path, subject: str) -> list[dict[str, Any]]:
    return [
        {"Question": r["question"], **dict(zip("ABCD", r["choices"], strict=True)), "Answer": r["answer"]}
        for r in read(path)
        if r["subject"] == subject
    ]


@pytest.fixture(params=["small_data", "question_data"])
def data(request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue(request.param)
    assert isinstance(folder, Path)
    return folder


def test_mmlu_is_asked_as_lm_eval_asks_it(data: Path, tmp_path: Path) -> None:
    files = {split: data / "eval" / f"mmlu_{split}.jsonl.gz" for split in ("test", "dev")}
    records = {split: hub_mmlu(path, "anatomy") for split, path in files.items()}
    expected = list(asked(lm_evals("mmlu_anatomy", "mmlu", records)))
    assert list(asked(ours("local_mmlu_anatomy", data, tmp_path))) == expected
    assert expected[0][0].startswith("The following are multiple choice questions (with answers) about anatomy.\n\n")


def test_cmmlu_is_asked_as_lm_eval_asks_it_but_for_the_space(data: Path, tmp_path: Path) -> None:
    files = {split: data / "eval" / f"cmmlu_{split}.jsonl.gz" for split in ("test", "dev")}
    records = {split: hub_cmmlu(path, "agronomy") for split, path in files.items()}
    found = list(asked(ours("local_cmmlu_agronomy", data, tmp_path)))
    expected = list(asked(lm_evals("cmmlu_agronomy", "cmmlu", records, target_delimiter="")))
    assert found == expected
    # As it ships, lm-eval puts a space after the full-width colon: in the examples and before the answer.
    spaced = list(asked(lm_evals("cmmlu_agronomy", "cmmlu", records)))
    assert all(re.search("答案： [ABCD]", prompt) for prompt, _, _ in spaced)
    assert [prompt.replace("答案： ", "答案：") for prompt, _, _ in spaced] == [prompt for prompt, _, _ in found]
    for (prompt, _, handed), (_, _, with_space) in zip(found, spaced, strict=True):
        assert prompt.endswith("答案：")
        assert [answer for _, answer in handed] == list("ABCD")
        assert [answer for _, answer in with_space] == [" A", " B", " C", " D"]


@pytest.mark.parametrize(("short", "name"), [("2da", "two_digit_addition"), ("1dc", "single_digit_three_ops")])
def test_arithmetic_is_asked_as_lm_eval_asks_it(data: Path, tmp_path: Path, short: str, name: str) -> None:
    records = [r for r in read(data / "eval" / "arithmetic.jsonl.gz") if r["task"] == name][:60]
    others = [sum_ for task in ARITHMETIC.values() if task != name for sum_ in sums(task, 1)]
    write_lines(tmp_path / "data" / "eval" / "arithmetic.jsonl.gz", others + records)
    hub = [{"context": r["context"], "completion": r["completion"]} for r in records]
    task = lm_evals(f"arithmetic_{short}", "arithmetic", {"test": hub}, **TEST_ONLY)
    found = list(asked(ours(f"local_arithmetic_{short}", tmp_path / "data", tmp_path / "tasks")))
    assert [prompt for prompt, _, _ in found] == [prompt for prompt, _, _ in asked(task)]
    assert [target for _, target, _ in found] == [target for _, target, _ in asked(task)]
    assert found[0][0].endswith("?\nAnswer:")
    assert found[0][1].startswith(" ")


def test_gsm8k_is_asked_as_lm_eval_asks_it(data: Path, tmp_path: Path) -> None:
    records = read(data / "eval" / "gsm8k_test.jsonl.gz")[:60]
    write_lines(tmp_path / "data" / "eval" / "gsm8k_test.jsonl.gz", records)
    expected = list(asked(lm_evals("gsm8k", "gsm8k", {"test": records}, **TEST_ONLY)))
    assert list(asked(ours("local_gsm8k", tmp_path / "data", tmp_path / "tasks"))) == expected


def test_hellaswag_is_asked_as_lm_eval_asks_it(tmp_path: Path) -> None:
    # In the hub's columns, with what lm-eval cleans away: titles, brackets, doubled spaces, an empty second context.
    hub = [
        {
            "activity_label": "Home and Garden" if n % 2 else "Mowing the lawn",
            "ctx_a": f"[header] How to mow lawn {n} [title] Check the oil.  Do it first.",
            "ctx_b": "then she" if n % 3 else "",
            "endings": [f"mows it {n} times. [step] Rests.", "sleeps", f"[substeps] sings  {n}", "leaves: now"],
            "label": str(n % 4),
        }
        for n in range(8)
    ]
    task = lm_evals("hellaswag", "hellaswag", {"test": hub}, **TEST_ONLY)
    # The local file holds what lm-eval made of them.
    local = [{"context": doc["query"], "endings": doc["choices"], "label": int(doc["label"])} for doc in task.eval_docs]
    write_lines(tmp_path / "data" / "eval" / "hellaswag_val.jsonl.gz", local)
    found = list(asked(ours("local_hellaswag", tmp_path / "data", tmp_path / "tasks")))
    assert found == list(asked(task))
    assert not any("[" in prompt for prompt, _, _ in found)


@pytest.mark.parametrize("name", ["local_gsm8k", "local_hellaswag", "local_arithmetic_2da"])
def test_no_question_is_among_its_own_examples(small_data: Path, tmp_path: Path, name: str) -> None:
    task = ours(name, small_data, tmp_path)
    for doc in task.eval_docs:
        question = task.doc_to_text(doc)
        assert task.fewshot_context(doc, SHOTS).count(question) == 1


@pytest.fixture(scope="module")
def run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole local suite, asked of lm-eval's model that answers at random."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.dummy import DummyLM

    suite = read_suite(CONFIGS / "evaluation" / "local.yaml")
    manager = open_suite(suite, tmp_path_factory.mktemp("tasks"), small_data)
    results = evaluate(DummyLM(), manager.load(build_tasks(suite, manager)), bootstrap_iters=0)
    assert results is not None
    return results


@pytest.mark.parametrize(
    ("task", "metrics", "shots"),
    [
        ("local_mmlu", ["acc,none"], 5),
        ("local_cmmlu", ["acc,none", "acc_norm,none"], 5),
        ("local_arithmetic", ["acc,none"], 0),
        ("local_gsm8k", ["exact_match,strict-match", "exact_match,flexible-extract"], 5),
        ("local_hellaswag", ["acc,none", "acc_norm,none"], 0),
    ],
)
def test_every_local_task_gives_its_metrics(run: dict[str, Any], task: str, metrics: list[str], shots: int) -> None:
    assert all(0 <= run["results"][task][metric] <= 1 for metric in metrics)
    assert run["n-shot"][task] == shots
    if task in run["groups"]:
        averages = group_averages(run, task, "acc,none")
        assert averages.micro == pytest.approx(run["results"][task]["acc,none"])
        assert averages.tasks == {"local_mmlu": 2, "local_cmmlu": 3, "local_arithmetic": 10}[task]
        assert averages.questions == {"local_mmlu": 14, "local_cmmlu": 18, "local_arithmetic": 40}[task]


def test_scores_are_those_of_the_answers(run: dict[str, Any]) -> None:
    """Recounted from the samples: the choice of the highest log-likelihood against the answer in the file."""
    samples = run["samples"]["local_mmlu_anatomy"]
    right = 0
    for sample in samples:
        scores = [score for score, _ in sample["filtered_resps"]]
        right += scores.index(max(scores)) == sample["doc"]["answer"]
    assert run["results"]["local_mmlu_anatomy"]["acc,none"] == pytest.approx(right / len(samples))


def test_lm_evals_warnings_are_held_back_and_come_back(
    small_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = logging.getLogger("lm_eval.api.task").level
    ours("local_gsm8k", small_data, tmp_path)
    assert "Custom kwargs" not in caplog.text
    assert logging.getLogger("lm_eval.api.task").level == before


def broken(change: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    records = [
        {"subject": "anatomy", "question": f"q{n}", "choices": ["a", "b", "c", "d"], "answer": "A"} for n in range(5)
    ]
    change(records[2])
    return records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("answer"), "no column answer; found subject, question, choices"),
        (lambda r: r.update(choices=["a", " ", "c", "d"]), "choices B is empty"),
        (lambda r: r.update(choices=["a", "b", "c"]), "choices has 3 entries, not 4"),
        (lambda r: r.update(choices=["a", "b", 3, "d"]), "choices C is int, not text"),
        (lambda r: r.update(choices="abcd"), "choices is str, not a list"),
        (lambda r: r.update(answer="E"), "answer is 'E', not one of 'A', 'B', 'C', 'D'"),
        (lambda r: r.update(answer=1), "answer is 1, not one of"),
        (lambda r: r.update(question="\n"), "question is empty"),
    ],
)
def test_a_bad_record_is_named_before_anything_runs(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    write_lines(tmp_path / "eval" / "mmlu_dev.jsonl.gz", broken(lambda record: None))
    write_lines(tmp_path / "eval" / "mmlu_test.jsonl.gz", broken(change))
    suite = Suite(Path("test"), "", (SuiteTask("local_mmlu"),))
    with pytest.raises(DataError, match=rf"mmlu_test.jsonl.gz:3: .*{re.escape(message)}.*1 of 5 records"):
        open_suite(suite, tmp_path / "tasks", tmp_path)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize(
    ("shape", "record", "message"),
    [
        ("hellaswag", {"context": "A: b", "endings": ["a", "b", "c", "d"], "label": 4}, "label is 4, outside its"),
        ("hellaswag", {"context": "A: b", "endings": ["a", "b", "c", "d"], "label": True}, "label is True, outside"),
        ("gsm8k", {"question": "q", "answer": "four"}, "answer has no last line"),
        ("arithmetic", {"task": "t", "context": "c"}, "no column completion"),
        ("mindllm_pubmedqa", {"question": "q", "context": {"contexts": []}, "final_decision": "yes"}, "empty list"),
        ("mindllm_ethics_justice", {"scenario": "s", "label": False}, "label is False, not one of 0, 1"),
        ("mindllm_logiqa", {"context": "c", "query": "q", "options": list("abcd"), "correct_option": -1}, "outside"),
    ],
)
def test_each_shape_has_its_checks(tmp_path: Path, shape: str, record: dict[str, Any], message: str) -> None:
    write_lines(tmp_path / "file.jsonl", [record])
    with pytest.raises(DataError, match=rf"file.jsonl:1: .*{message}"):
        check_task_data(tmp_path / "file.jsonl", shape)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=4) | st.sampled_from("ABCD"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.data())
def test_no_record_whatever_breaks_a_check(drawing: st.DataObject) -> None:
    """Any JSON under the right names of columns is sound or is named in one line."""
    shape = drawing.draw(st.sampled_from(sorted(SHAPES)))
    columns = dict.fromkeys(SHAPES[shape].columns, JSON)
    record = drawing.draw(st.one_of(st.fixed_dictionaries(columns), st.fixed_dictionaries({}, optional=columns), JSON))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.jsonl"
        write_lines(path, [record])
        message = None
        try:
            assert check_task_data(path, shape) == 1
        except DataError as error:
            message = str(error)
    if message is None:
        assert SHAPES[shape].convert(record)
    else:
        assert "file.jsonl:1: " in message
        assert message.isprintable()


@pytest.mark.parametrize("subject", ["my_subject", "../anatomy", "anatomy/.."])
def test_a_subject_that_lm_eval_does_not_have(small_data: Path, tmp_path: Path, subject: str) -> None:
    for split in ("test", "dev"):
        records = broken(lambda record: record.update(subject=subject))
        write_lines(tmp_path / "eval" / f"mmlu_{split}.jsonl.gz", records)
    suite = Suite(Path("test"), "", (SuiteTask("local_mmlu"),))
    with pytest.raises(DataError, match=rf"mmlu_test.jsonl.gz: lm-eval has no subject {subject} of local_mmlu"):
        open_suite(suite, tmp_path / "tasks", tmp_path)
    assert not (tmp_path / "tasks").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl.gz"
    with pytest.raises(DataError, match=r"file.jsonl.gz: cannot be read"):
        check_task_data(path, "mmlu")
    write_lines(path, [])
    with pytest.raises(DataError, match="no records; give a file with one question a line"):
        check_task_data(path, "mmlu")
    write_lines(path, broken(lambda record: None))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated"):
        check_task_data(path, "mmlu")
    (tmp_path / "text.jsonl").write_text("[1]\nnot json\n")
    with pytest.raises(DataError, match=r"text.jsonl:1: not a JSON object \(2 of 2 records"):
        check_task_data(tmp_path / "text.jsonl", "mmlu")


def test_a_mended_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    write_lines(path, broken(lambda record: record.pop("answer")))
    with pytest.raises(DataError, match="no column answer"):
        check_task_data(path, "mmlu")
    write_lines(path, broken(lambda record: None))
    assert check_task_data(path, "mmlu") == 5
    write_lines(path, broken(lambda record: None)[:3])
    assert check_task_data(path, "mmlu") == 3


def test_the_real_files_are_sound(question_data: Path) -> None:
    counts = {
        file: check_task_data(question_data / "eval" / file, benchmark.shape)
        for benchmark in LOCAL_BENCHMARKS.values()
        for file in benchmark.files.values()
    }
    assert counts == {
        "mmlu_test.jsonl.gz": 14042,
        "mmlu_dev.jsonl.gz": 285,
        "cmmlu_test.jsonl.gz": 11582,
        "cmmlu_dev.jsonl.gz": 335,
        "arithmetic.jsonl.gz": 24000,
        "gsm8k_test.jsonl.gz": 1319,
        "hellaswag_val.jsonl.gz": 10042,
    }


def test_every_benchmark_has_its_shape() -> None:
    assert {benchmark.shape for benchmark in LOCAL_BENCHMARKS.values()} <= set(SHAPES)
    assert all(name.startswith("local_") for name in LOCAL_BENCHMARKS)
