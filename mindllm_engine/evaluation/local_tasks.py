"""Task files for lm-eval that ask their questions from local files, with lm-eval's own prompts.

A task file written here includes the one that ships with lm-eval, so the prompt, the choices, the metric and the
filters are lm-eval's by construction, and replaces where the questions come from (`task_data.load_records`). Any
program that takes lm-eval's `--include_path` reads the folder, lm-eval's own command line too.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.task_data import check_task_data, subjects_in

# GPT-3's ten arithmetic tasks (arXiv 2005.14165, section 3.9.1): lm-eval's name -> the task in the local file.
ARITHMETIC = {
    "1dc": "single_digit_three_ops",
    "2da": "two_digit_addition",
    "2dm": "two_digit_multiplication",
    "2ds": "two_digit_subtraction",
    "3da": "three_digit_addition",
    "3ds": "three_digit_subtraction",
    "4da": "four_digit_addition",
    "4ds": "four_digit_subtraction",
    "5da": "five_digit_addition",
    "5ds": "five_digit_subtraction",
}


class _Function(str):
    """The name of a function, which YAML writes as `!function name`."""


class _Writer(yaml.SafeDumper):
    pass


_Writer.add_representer(_Function, lambda writer, name: writer.represent_scalar("!function", str(name)))


@dataclass(frozen=True)
class LocalBenchmark:
    """A benchmark whose questions lie in `<data folder>/eval`.

    Attributes:
        shape: a key of `task_data.SHAPES`.
        files: split -> file.
        home: lm-eval's task file, under its folder of tasks; `{}` stands for the subject.
        changes: what the task files set beside the questions, over lm-eval's own.
        metrics: the metrics whose mean a group of subjects reports.
    """

    shape: str
    files: Mapping[str, str]
    home: str
    changes: Mapping[str, Any]
    metrics: tuple[str, ...] = ()


# Of these only the questions that are asked lie in the data folder: examples come from them too, and never the question
# itself, which lm-eval sees to for the split called test alone (asked from a split called validation, a question may
# stand with its answer among its own examples).
_TEST_ONLY = {"training_split": None, "validation_split": None, "test_split": "test", "fewshot_split": "test"}

LOCAL_BENCHMARKS = {
    "local_mmlu": LocalBenchmark(
        "mmlu", {"test": "mmlu_test.jsonl.gz", "dev": "mmlu_dev.jsonl.gz"}, "mmlu/default/mmlu_{}.yaml", {}, ("acc",)
    ),
    "local_cmmlu": LocalBenchmark(
        "cmmlu",
        {"test": "cmmlu_test.jsonl.gz", "dev": "cmmlu_dev.jsonl.gz"},
        "cmmlu/cmmlu_{}.yaml",
        {"target_delimiter": ""},  # the prompt ends in a full-width colon: a space after it is no Chinese
        ("acc", "acc_norm"),
    ),
    "local_arithmetic": LocalBenchmark(
        "arithmetic", {"test": "arithmetic.jsonl.gz"}, "arithmetic/arithmetic_{}.yaml", _TEST_ONLY, ("acc",)
    ),
    "local_gsm8k": LocalBenchmark("gsm8k", {"test": "gsm8k_test.jsonl.gz"}, "gsm8k/gsm8k.yaml", _TEST_ONLY),
    "local_hellaswag": LocalBenchmark(
        "hellaswag",
        {"test": "hellaswag_val.jsonl.gz"},
        "hellaswag/hellaswag.yaml",
        {**_TEST_ONLY, "process_docs": None},  # the file holds processed questions
    ),
}


def write_local_tasks(name: str, data_folder: Path, folder: Path) -> None:
    """Write the task files of a benchmark, and of the group over its subjects, to `folder`.

    Each of its files is read to its end first, so that a bad record is an error before anything runs.

    Raises:
        DataError: a file of questions is missing or has a bad record, or a subject that lm-eval does not have.
    """
    benchmark = LOCAL_BENCHMARKS[name]
    files = {split: str((data_folder / "eval" / file).resolve()) for split, file in benchmark.files.items()}
    for path in files.values():
        check_task_data(path, benchmark.shape)
    subjects = _subjects(benchmark, files)
    homes = {subject: lm_eval_tasks() / benchmark.home.format(subject) for subject in subjects}
    for subject, home in homes.items():
        if "/" in subject or not home.is_file():
            path = next(iter(files.values()))
            raise DataError(f"{path}: lm-eval has no subject {subject} of {name}, whose prompt names it; rename it")
    for subject, in_file in subjects.items():
        _write_task(
            folder,
            name=f"{name}_{subject}" if subject else name,
            home=homes[subject],
            questions={"files": files, "shape": benchmark.shape, **({"subject": in_file} if in_file else {})},
            changes={**benchmark.changes} | ({"task_alias": subject} if subject else {}),
        )
    if benchmark.metrics:
        group = {
            "group": name,
            "task": [f"{name}_{subject}" for subject in subjects],
            "aggregate_metric_list": [{"metric": metric, "weight_by_size": True} for metric in benchmark.metrics],
        }
        _write(folder / f"_{name}.yaml", group)


def _subjects(benchmark: LocalBenchmark, files: Mapping[str, str]) -> dict[str, str | None]:
    """lm-eval's name of each subject -> its name in the file; a benchmark without subjects has one without a name."""
    if benchmark.shape == "arithmetic":
        return dict(ARITHMETIC)
    if not benchmark.metrics:
        return {"": None}
    # Of the file that is asked, the first: a subject without questions is no task.
    return {subject: subject for subject in subjects_in(next(iter(files.values())), benchmark.shape)}


def write_with_local_questions(name: str, home: Path, files: Mapping[str, Path], folder: Path) -> None:
    """Write a task file of the name `name` that is `home` with its questions from `files` (split -> JSON lines).

    Raises:
        DataError: a file of questions is missing or has a bad record.
    """
    for path in files.values():
        check_task_data(path, name)
    questions = {"files": {split: str(path.resolve()) for split, path in files.items()}, "shape": name}
    # Examples come from the questions' own file where no other is given.
    changes = {"fewshot_split": next(iter(files))} if len(files) == 1 else {}
    _write_task(folder, name, home, questions, changes)


def lm_eval_tasks() -> Path:
    """The folder of task files that ships with lm-eval.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise ConfigError("evaluation needs lm-eval: pip install 'mindllm-engine[eval]'")
    return Path(found.origin).parent / "tasks"


def _write_task(folder: Path, name: str, home: Path, questions: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    task = {
        "include": str(home),
        "task": name,
        "tag": None,  # lm-eval's tags mean its own tasks
        "custom_dataset": _Function("mindllm_engine.evaluation.task_data.load_records"),
        "dataset_kwargs": dict(questions),
        **changes,
    }
    _write(folder / f"{name}.yaml", task)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, yaml.dump(dict(content), Dumper=_Writer, sort_keys=False, allow_unicode=True).encode())
