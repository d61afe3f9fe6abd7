"""A suite: which tasks a model is asked, with how many examples, from one YAML file.

    about: ...                       what the suite is
    include_path: [folder, ...]      more folders of lm-eval task files, seen from the suite's file
    tasks:
      - task: local_mmlu             a task, group or tag of lm-eval's, of ours, or of include_path
        num_fewshot: 5               examples before each question
        shots_from: assumed          where that number comes from: paper, or assumed
        metric: acc                  the figure that a table shows
        chance: 0.25                 what guessing gets of it
        paper: mmlu                  its name in configs/paper/tables.yaml
        limit: 10                    ask the first so many questions of each of its tasks only
        data_files: {test: my.jsonl} the questions from local files (own tasks only), seen from the data folder

`open_suite` writes what must be written (task files over local questions), checks every name and every local question,
and gives lm-eval's `TaskManager`; `build_tasks` gives what `lm_eval.simple_evaluate(tasks=...)` takes.
"""

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindllm_engine.command_line import read_yaml
from mindllm_engine.errors import ConfigError
from mindllm_engine.evaluation.local_tasks import (
    LOCAL_BENCHMARKS,
    lm_eval_tasks,
    write_local_tasks,
    write_with_local_questions,
)

OWN_TASKS = Path(__file__).parent / "tasks"

SHOTS_FROM = ("paper", "assumed")

# What task files are, and the functions that they name.
_TASKS = (".yaml", ".py")

# How our tasks' names begin; none of lm-eval's does.
_OURS = ("local_", "mindllm_")


@dataclass(frozen=True)
class SuiteTask:
    """One entry of a suite.

    Attributes:
        task: a task, group or tag.
        num_fewshot: examples before each question; None leaves what the task's own file says.
        shots_from: "paper" where the paper gives the number, else "assumed".
        metric: the metric that tables show, as lm-eval names it.
        chance: what guessing gets, a fraction of one; None where it differs from question to question.
        paper: the task's name in the paper's tables, None where they have none.
        limit: questions asked of each of its tasks, the first ones; None for all.
        data_files: split -> file of JSON lines, in the place of the hub.
    """

    task: str
    num_fewshot: int | None = None
    shots_from: str = "assumed"
    metric: str = "acc"
    chance: float | None = None
    paper: str | None = None
    limit: int | None = None
    data_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A suite as its file has it. `include_path` is absolute."""

    path: Path
    about: str
    tasks: tuple[SuiteTask, ...]
    include_path: tuple[Path, ...] = ()


def read_suite(path: str | Path) -> Suite:
    """A suite from its YAML file.

    Raises:
        ConfigError: the file is missing, or a key or value in it is wrong; the message names the nearest valid key.
    """
    path = Path(path)
    content = read_yaml(path)
    _check_keys(content, ("about", "include_path", "tasks"), str(path))
    entries = content.get("tasks")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: tasks: expected a list of tasks, found {entries!r}")
    folders = content.get("include_path", [])
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise ConfigError(f"{path}: include_path: expected a list of folders, found {folders!r}")
    tasks = tuple(_entry(entry, f"{path}: tasks[{position}]") for position, entry in enumerate(entries))
    names = [entry.task for entry in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: task {twice[0]} is given twice; lm-eval keeps one result for each name")
    include_path = tuple((path.parent / folder).resolve() for folder in folders)
    for folder in include_path:
        if not folder.is_dir():
            raise ConfigError(f"{path}: include_path: no folder {folder}")
    return Suite(path, str(content.get("about", "")), tasks, include_path)


def suite_of(names: Iterable[str]) -> Suite:
    """A suite of tasks given by name, each with the number of examples that its own file says."""
    return Suite(Path("the command line"), "", tuple(SuiteTask(name) for name in names))


def data_folder(given: str | Path | None = None) -> Path:
    """The folder of real text: the one given, or that of the environment's MINDLLM_DATA, or ../shared/data."""
    return Path(given or os.environ.get("MINDLLM_DATA", "../shared/data"))


def files_of(entry: SuiteTask, suite: Suite, data: Path) -> list[Path]:
    """The local files that an entry's results depend on: its questions, and the suite's own task files (all of them,
    as they include each other)."""
    benchmark = _local_benchmark(entry.task)
    if entry.data_files:
        files = [data / file for file in entry.data_files.values()]
    elif benchmark is not None:
        files = [data / "eval" / file for file in LOCAL_BENCHMARKS[benchmark].files.values()]
    else:
        files = []
    own = [path for folder in (OWN_TASKS, *suite.include_path) for path in folder.rglob("*") if path.suffix in _TASKS]
    return [*files, *sorted(own)]


def open_suite(suite: Suite, folder: str | Path, data: str | Path | None = None) -> Any:
    """lm-eval's `TaskManager` that knows every task of the suite.

    lm-eval's own 14,000 tasks are listed only if the suite names one of them (it takes half a minute).

    Args:
        suite: what is to be asked.
        folder: where task files over local questions are written; keep it beside the results.
        data: the data folder, see `data_folder`.

    Raises:
        ConfigError: lm-eval is not installed, or a task that does not exist; the message names the nearest.
        DataError: a file of local questions is missing or has a bad record.
    """
    lm_eval_tasks()  # says what to install
    from lm_eval.tasks import TaskManager

    folder, data = Path(folder), data_folder(data)
    for entry in suite.tasks:
        if entry.data_files:
            files = {split: data / file for split, file in entry.data_files.items()}
            write_with_local_questions(entry.task, OWN_TASKS / f"{entry.task}.yaml", files, folder)
        elif (benchmark := _local_benchmark(entry.task)) is not None:
            write_local_tasks(benchmark, data, folder)
    # lm-eval warns where a later folder takes the place of an earlier one's task, which is meant here.
    with _quiet("lm_eval.tasks._index"):
        paths = [OWN_TASKS, *suite.include_path, *([folder] if folder.is_dir() else [])]
        manager = TaskManager(include_path=paths, include_defaults=False)
        unknown = [entry.task for entry in suite.tasks if entry.task not in manager.task_index]
        if unknown and not any(name.startswith(_OURS) for name in unknown):
            manager = TaskManager(include_path=paths, include_defaults=True)
            unknown = [name for name in unknown if name not in manager.task_index]
    for name in unknown:
        known = [*manager.all_tasks, *LOCAL_BENCHMARKS]
        raise ConfigError(f"{suite.path}: there is no task {name}{_nearest(name, known)}")
    return manager


def build_tasks(suite: Suite, manager: Any) -> list[Any]:
    """The suite's tasks and groups, questions loaded and examples counted, for `simple_evaluate(tasks=...)`.

    Raises:
        DataError: a file of local questions has a bad record.
    """
    import datasets

    built: list[Any] = []
    datasets.disable_progress_bars()  # one a task and split otherwise
    with _quiet("lm_eval.api.task"):
        for entry in suite.tasks:
            loaded = manager.load([entry.task])
            if entry.num_fewshot is not None:
                for task in loaded["tasks"].values():
                    task.set_config("num_fewshot", entry.num_fewshot)
            group = loaded.get("groups", {}).get(entry.task)
            built.extend([group] if group is not None else loaded["tasks"].values())
    return built


def _local_benchmark(task: str) -> str | None:
    """The local benchmark that a task is or belongs to."""
    return next((name for name in LOCAL_BENCHMARKS if task == name or task.startswith(f"{name}_")), None)


def _entry(content: Any, where: str) -> SuiteTask:
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected a mapping with the key task, found {content!r}")
    _check_keys(content, tuple(SuiteTask.__dataclass_fields__), where)
    if not isinstance(content.get("task"), str) or not content["task"]:
        raise ConfigError(f"{where}: expected the key task with the name of a task")
    entry = SuiteTask(**content)
    shots, chance = entry.num_fewshot, entry.chance
    if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 0):
        raise ConfigError(f"{where}: num_fewshot: expected a whole number from 0, found {shots!r}")
    if entry.shots_from not in SHOTS_FROM:
        raise ConfigError(f"{where}: shots_from: expected {' or '.join(SHOTS_FROM)}, found {entry.shots_from!r}")
    if chance is not None and (not isinstance(chance, int | float) or not 0 <= chance < 1):
        raise ConfigError(f"{where}: chance: expected a fraction from 0 to below 1, found {chance!r}")
    if not isinstance(entry.metric, str):
        raise ConfigError(f"{where}: metric: expected a name, found {entry.metric!r}")
    if entry.limit is not None and (type(entry.limit) is not int or entry.limit < 1):
        raise ConfigError(f"{where}: limit: expected a whole number from 1, found {entry.limit!r}")
    if not isinstance(entry.data_files, dict) or not all(isinstance(file, str) for file in entry.data_files.values()):
        raise ConfigError(f"{where}: data_files: expected split: file, found {entry.data_files!r}")
    own = [path.stem for path in OWN_TASKS.glob("mindllm_*.yaml")]
    if entry.data_files and entry.task not in own:
        raise ConfigError(f"{where}: {entry.task} takes no data_files{_nearest(entry.task, own)}")
    return entry


def _check_keys(content: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in content:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key}{_nearest(str(key), known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {found[0]}?" if found else ""


class _quiet:
    """Holds back a logger's warnings: lm-eval has one for each task with local questions."""

    def __init__(self, logger: str):
        self._logger = logging.getLogger(logger)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
