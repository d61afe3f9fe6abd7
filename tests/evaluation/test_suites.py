"""Suites: every task they name exists, own tasks ask what lm-eval's would, and a wrong file is named in one line."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.local_tasks import lm_eval_tasks
from mindllm_engine.evaluation.own_tasks import chinese_bleu
from mindllm_engine.evaluation.suites import (
    OWN_TASKS,
    Suite,
    SuiteTask,
    build_tasks,
    open_suite,
    read_suite,
    suite_of,
)
from mindllm_engine.evaluation.task_data import SHAPES
from tests.evaluation.conftest import write_lines

pytest.importorskip("lm_eval")

CONFIGS = Path(__file__).parents[2] / "configs" / "evaluation"

# What the issue asks of the paper's suite, by the names in its key `paper`.
PAPER = {
    *("mmlu", "agieval", "ceval", "cmmlu", "arithmetic", "gsm8k", "math", "hellaswag", "winogrande", "logiqa"),
    *("pubmedqa", "piqa", "mathqa", "bbh", "truthfulqa_mc1", "truthfulqa_mc2", "toxigen", "ethics"),
    *("flores_zh_en_simplified", "flores_en_zh_simplified", "flores_zh_en_traditional", "flores_en_zh_traditional"),
}


def suite_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.slow
def test_every_task_of_the_paper_is_known_and_a_misspelt_one_is_named(tmp_path: Path) -> None:
    suite = read_suite(CONFIGS / "paper.yaml")
    assert {entry.paper for entry in suite.tasks} == PAPER
    assert all(entry.num_fewshot is not None for entry in suite.tasks)
    # lm-eval lists its 14,000 tasks once, in half a minute. The first unknown name is the one in the message.
    misspelt = replace(suite, tasks=(*suite.tasks, SuiteTask("helaswag")))
    with pytest.raises(ConfigError, match=r"paper.yaml: there is no task helaswag; did you mean hellaswag\?"):
        open_suite(misspelt, tmp_path / "tasks", "nowhere")


@pytest.mark.parametrize(("group", "tasks", "shots"), [("mindllm_cmmlu", 67, 5), ("mindllm_ceval", 52, 5)])
def test_chinese_examinations_are_scored_without_the_space(tmp_path: Path, group: str, tasks: int, shots: int) -> None:
    from lm_eval.tasks import TaskManager

    # The group as it stands, with questions in the place of the hub's.
    (tmp_path / "questions.py").write_text(
        "import datasets\n"
        "row = {'Question': '问', 'question': '问', **dict.fromkeys('ABCD', '甲'), 'Answer': 'B', 'answer': 'B'}\n"
        "def load(**_):\n    return dict.fromkeys(('test', 'dev', 'val'), datasets.Dataset.from_list([row] * 7))\n"
    )
    (tmp_path / "group.yaml").write_text(f"group: here\ntask: [{group}]\ncustom_dataset: !function questions.load\n")
    home = lm_eval_tasks()
    manager = TaskManager(include_path=[home / "cmmlu", home / "ceval", OWN_TASKS, tmp_path], include_defaults=False)
    found = manager.load(["here"])["tasks"]
    assert len(found) == tasks
    for task in found.values():
        task.set_fewshot_seed(1)
        (doc, *_) = task.eval_docs
        prompt = task.fewshot_context(doc, shots)
        assert prompt.count("答案：B") == shots
        assert prompt.endswith("答案：")
        requests = task.construct_requests(doc, prompt, metadata=("", 0, 1))
        assert [request.arguments[1] for request in requests] == list("ABCD")


def test_the_local_suite_is_the_papers_but_for_the_questions() -> None:
    paper = {entry.paper: entry for entry in read_suite(CONFIGS / "paper.yaml").tasks}
    for entry in read_suite(CONFIGS / "local.yaml").tasks:
        same = paper[entry.paper]
        assert (entry.num_fewshot, entry.metric, entry.chance) == (same.num_fewshot, same.metric, same.chance)


# Own tasks, over records written here in the columns of the hub.

LOGIQA = [
    {
        "context": f"All {n} birds sing. ",
        "query": "Which follows?",
        "options": ["a b", "b", "c", "d"],
        "correct_option": n % 4,
    }
    for n in range(6)
]
PUBMEDQA = [
    {
        "question": f"Does tea {n} help?",
        "context": {"contexts": ["We gave tea.", "None helped."], "labels": ["A", "B"], "meshes": []},
        "long_answer": "no",
        "final_decision": ["yes", "no", "maybe"][n % 3],
    }
    for n in range(6)
]
ETHICS = {
    "commonsense": [{"input": f"I fed the dog {n} times.", "label": n % 2} for n in range(6)],
    "deontology": [
        {"scenario": "Could you help?", "excuse": f"No, I helped {n} times. ", "label": n % 2} for n in range(6)
    ],
    "justice": [{"scenario": f"I pay Ann {n} because she works.", "label": n % 2} for n in range(6)],
    "utilitarianism": [{"activity": f"I eat {n} cakes.", "baseline": f"I drop {n} cakes."} for n in range(6)],
    "virtue": [{"scenario": f"Ann kept her word {n} times.", "trait": "honest", "label": n % 2} for n in range(6)],
}
# own task -> (our records, lm-eval's folder and task, the record in the columns of lm-eval's task)
SAME_AS_LM_EVAL: dict[str, tuple[list[dict[str, Any]], str, str, Any]] = {
    "mindllm_logiqa": (
        LOGIQA,
        "logiqa",
        "logiqa",
        lambda r: {
            "context": r["context"],
            "question": r["query"],
            "options": r["options"],
            "label": "abcd"[r["correct_option"]],
        },
    ),
    "mindllm_pubmedqa": (
        PUBMEDQA,
        "pubmedqa",
        "pubmedqa",
        lambda r: {
            "CONTEXTS": r["context"]["contexts"],
            "QUESTION": r["question"],
            "final_decision": r["final_decision"],
        },
    ),
} | {
    f"mindllm_ethics_{name}": (
        records,
        "hendrycks_ethics",
        "ethics_cm" if name == "commonsense" else f"ethics_{name}",
        lambda record: record,
    )
    for name, records in ETHICS.items()
}


def asked(task: Any, shots: int) -> Iterator[tuple[str, Any, list[Any]]]:
    task.set_fewshot_seed(7)
    for doc in task.eval_docs:
        prompt = task.fewshot_context(doc, shots)
        requests = task.construct_requests(doc, prompt, metadata=("", 0, 1))
        yield prompt, task.doc_to_target(doc), [request.arguments for request in requests]


def own(task: str, records: list[dict[str, Any]], tmp_path: Path, **splits: str) -> Any:
    """An own task over a local file, through a suite's `data_files`."""
    write_lines(tmp_path / "data" / "questions.jsonl", records)
    path = suite_file(tmp_path, f"tasks: [{{task: {task}, num_fewshot: 2, data_files: {splits}}}]")
    suite = read_suite(path)
    (built,) = build_tasks(suite, open_suite(suite, tmp_path / "tasks", tmp_path / "data"))
    assert built.config.num_fewshot == 2
    return built


@pytest.mark.parametrize("task", SAME_AS_LM_EVAL)
@pytest.mark.parametrize("shots", [0, 2])
def test_an_own_task_asks_what_lm_evals_task_would(task: str, shots: int, tmp_path: Path) -> None:
    import datasets
    from lm_eval.tasks import TaskManager

    records, folder, theirs, convert = SAME_AS_LM_EVAL[task]
    split = "train" if task == "mindllm_pubmedqa" else "test"
    ours = own(task, records, tmp_path, **{split: "questions.jsonl"})
    rows = datasets.Dataset.from_list([convert(record) for record in records])
    splits = {"training_split": None, "validation_split": None, "test_split": "test", "fewshot_split": "test"}
    change = {"task": theirs, "custom_dataset": lambda **_: {"test": rows}, **splits}
    manager = TaskManager(include_path=lm_eval_tasks() / folder, include_defaults=False)
    oracle = manager.load({"group": "test", "task": [change]})["tasks"][theirs]
    expected = list(asked(oracle, shots))
    found = list(asked(ours, shots))
    assert [prompt for prompt, _, _ in found] == [prompt for prompt, _, _ in expected]
    assert [handed for _, _, handed in found] == [handed for _, _, handed in expected]
    choices = ours.doc_to_choice(next(iter(ours.eval_docs)))
    # A target is the place of a choice or the choice itself.
    place = [t if isinstance(t, int) else choices.index(t) for _, t, _ in found]
    assert place == [t if isinstance(t, int) else choices.index(t) for _, t, _ in expected]


SENTENCES = [
    {
        "sentence_eng_Latn": f"Ann has {n} pears.",
        "sentence_zho_Hans": f"安有{n}个梨。",
        "sentence_zho_Hant": f"安有{n}個梨。",
    }
    for n in range(5)
]


@pytest.mark.parametrize(
    ("pair", "prompt", "target"),
    [
        ("zho_Hans-eng_Latn", "Chinese sentence: 安有0个梨。\nEnglish sentence:", " Ann has 0 pears."),
        ("zho_Hant-eng_Latn", "Chinese sentence: 安有0個梨。\nEnglish sentence:", " Ann has 0 pears."),
        ("eng_Latn-zho_Hans", "English sentence: Ann has 0 pears.\nChinese sentence:", "安有0个梨。"),
        ("eng_Latn-zho_Hant", "English sentence: Ann has 0 pears.\nChinese sentence:", "安有0個梨。"),
    ],
)
def test_flores_both_ways_in_both_scripts(pair: str, prompt: str, target: str, tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.dummy import DummyLM

    task = own(f"mindllm_flores_{pair}", SENTENCES, tmp_path, devtest="questions.jsonl")
    first, second = list(task.eval_docs)[:2]
    assert task.fewshot_context(first, 0) == prompt
    # An example ends as an answer should: no space before Chinese, one before English.
    context = task.fewshot_context(second, 4)
    assert f"{prompt}{target}\n\n" in context
    assert second["sentence_eng_Latn"] not in context.removesuffix(task.doc_to_text(second)) or "eng" not in pair
    results = evaluate(DummyLM(), {"tasks": {task.task_name: task}}, bootstrap_iters=0)
    assert results is not None
    scores = results["results"][task.task_name]
    assert 0 <= scores["bleu,none"] <= 100
    assert 0 <= scores["chrf,none"] <= 100


def test_chinese_bleu_counts_characters() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    references = ["安有三个梨，还有两本书。", "天气很好。"]
    answers = ["安有两个梨，还有两本书。", "天气不好。"]
    apart = [" ".join(text) for text in references], [" ".join(text) for text in answers]
    oracle = sacrebleu.corpus_bleu(apart[1], [apart[0]], tokenize="none").score
    assert chinese_bleu(list(zip(references, answers, strict=True))) == pytest.approx(oracle)
    assert chinese_bleu([([text], [text]) for text in references]) == pytest.approx(100)


def test_every_own_task_file_has_a_shape_and_a_name_of_its_own() -> None:
    names = {path.stem for path in OWN_TASKS.glob("mindllm_*.yaml")}
    assert names == {name for name in SHAPES if name.startswith("mindllm_")}


# Wrong files.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [{task: mmlu}]", "unknown key task; did you mean tasks?"),
        ("tasks: []", "tasks: expected a list of tasks"),
        ("tasks: [mmlu]", r"tasks\[0\]: expected a mapping with the key task"),
        ("tasks: [{num_fewshot: 5}]", "expected the key task"),
        ("tasks: [{task: mmlu, num_fewshots: 5}]", "unknown key num_fewshots; did you mean num_fewshot?"),
        ("tasks: [{task: mmlu, num_fewshot: -1}]", "expected a whole number from 0, found -1"),
        ("tasks: [{task: mmlu, num_fewshot: five}]", "expected a whole number from 0, found 'five'"),
        ("tasks: [{task: mmlu, num_fewshot: true}]", "expected a whole number from 0, found True"),
        ("tasks: [{task: mmlu, chance: 25}]", "chance: expected a fraction"),
        ("tasks: [{task: mmlu, limit: 0}]", "limit: expected a whole number from 1, found 0"),
        ("tasks: [{task: mmlu, limit: true}]", "limit: expected a whole number from 1, found True"),
        ("tasks: [{task: mmlu, limit: 1.5}]", "limit: expected a whole number from 1, found 1.5"),
        ("tasks: [{task: mmlu, shots_from: me}]", "shots_from: expected paper or assumed"),
        ("tasks: [{task: mmlu}, {task: mmlu, num_fewshot: 5}]", "task mmlu is given twice"),
        ("include_path: [nowhere]\ntasks: [{task: mmlu}]", "include_path: no folder"),
        ("include_path: here\ntasks: [{task: mmlu}]", "include_path: expected a list of folders"),
        ("tasks: [{task: mmlu, data_files: {test: a}}]", "mmlu takes no data_files"),
        ("tasks: [{task: mindllm_logiqua, data_files: {test: a}}]", "did you mean mindllm_logiqa?"),
        ("tasks: [{task: mindllm_logiqa, data_files: a}]", "data_files: expected split: file"),
    ],
)
def test_a_wrong_suite_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as error:
        read_suite(suite_file(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("local_cmlu", "local_cmmlu"), ("mindllm_logicqa", "mindllm_logiqa"), ("local_mmlu_x", "local_")],
)
def test_an_unknown_task_of_ours_has_its_nearest_name(
    small_data: Path, tmp_path: Path, name: str, nearest: str
) -> None:
    with pytest.raises(ConfigError, match=rf"the command line: there is no task {name}; did you mean {nearest}"):
        open_suite(suite_of([name]), tmp_path / "tasks", small_data)


def test_none_of_lm_evals_tasks_is_called_as_ours_are() -> None:
    files = [path.name for path in lm_eval_tasks().glob("**/*.yaml")]
    assert len(files) > 5000
    assert not [name for name in files if name.startswith(("local_", "mindllm_"))]


def test_a_missing_file_of_questions_is_named(tmp_path: Path) -> None:
    suite = read_suite(suite_file(tmp_path, "tasks: [{task: mindllm_logiqa, data_files: {test: gone.jsonl}}]"))
    with pytest.raises(DataError, match=r"gone.jsonl: cannot be read"):
        open_suite(suite, tmp_path / "tasks", tmp_path)
    with pytest.raises(DataError, match=r"mmlu_test.jsonl.gz: cannot be read"):
        open_suite(suite_of(["local_mmlu"]), tmp_path / "tasks", tmp_path)


def test_a_subject_of_a_local_benchmark_can_be_asked_alone(small_data: Path, tmp_path: Path) -> None:
    suite = Suite(tmp_path, "", (SuiteTask("local_mmlu_anatomy", 1), SuiteTask("local_cmmlu", 2)))
    built = build_tasks(suite, open_suite(suite, tmp_path / "tasks", small_data))
    assert [getattr(one, "name", None) or one.task_name for one in built] == ["local_mmlu_anatomy", "local_cmmlu"]
    assert [task.config.num_fewshot for task in built[1].get_all_tasks()] == [2, 2, 2]


def test_a_users_own_folder_of_tasks(small_data: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "more" / "lines.jsonl", [{"q": "Say yes.", "a": "yes"}])
    (tmp_path / "more" / "yes.yaml").write_text(
        f"task: say_yes\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/more/lines.jsonl}},"
        f" cache_dir: {tmp_path}/cache}}\noutput_type: loglikelihood\ntest_split: test\ndoc_to_text: '{{{{q}}}}'\n"
        "doc_to_target: '{{a}}'\nmetric_list: [{metric: acc}]\n"
    )
    suite = read_suite(suite_file(tmp_path, "include_path: [more]\ntasks: [{task: say_yes}]"))
    (task,) = build_tasks(suite, open_suite(suite, tmp_path / "tasks", small_data))
    assert task.fewshot_context(next(iter(task.eval_docs)), 0) == "Say yes."


def test_the_data_folder_is_the_environments(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDLLM_DATA", str(small_data))
    manager = open_suite(suite_of(["local_hellaswag"]), tmp_path)
    assert "local_hellaswag" in manager.task_index
