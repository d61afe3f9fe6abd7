"""A suite of lm-eval's tasks asked of a run of the engine: what `tools/evaluate.py` calls.

Each entry of the suite is asked by itself and leaves `<out>/tasks/<entry>.json` and `.samples.jsonl.gz`, which a later
call with the same network and settings takes over. The sums are in `scores.py`.
"""

import contextlib
import gzip
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
import torch.distributed as dist
import xxhash

from mindllm_engine.corpus.chat_template import load_template
from mindllm_engine.data.atomic_files import file_hash, write_atomically
from mindllm_engine.distributed.process_group import World, raise_together
from mindllm_engine.errors import ConfigError, DataError, MindLLMError
from mindllm_engine.evaluation.scores import entry_scores, markdown_table, readings_of
from mindllm_engine.evaluation.suites import (
    Suite,
    SuiteTask,
    build_tasks,
    data_folder,
    files_of,
    open_suite,
    read_suite,
    suite_of,
)
from mindllm_engine.training.checkpoint import load_state
from mindllm_engine.training.weights import find_checkpoint, load_model, refuse_nan, tokenizer_of

if TYPE_CHECKING:
    from mindllm_engine.evaluation.lm_eval_adapter import EngineLM

# Resamples for the standard errors that have no formula, such as BLEU's.
BOOTSTRAP_ROUNDS = 1000


@dataclass
class EvaluateArguments:
    """Ask a network the tasks of a suite. Under torchrun the ranks share the questions."""

    run: str
    """The run folder, or one of its checkpoints."""
    out: str | None = None
    """Folder for results.json, results.md and, in tasks/, each task's results and answers to every question; by default
    `evaluation/<suite>` in the run folder, where tools/report.py looks. A task whose results lie there already, for the
    same network and settings, is not asked again."""
    suite: str | None = None
    """YAML file with tasks, such as configs/evaluation/local.yaml."""
    tasks: list[str] = field(default_factory=list)
    """Names of tasks instead of a suite, each with the number of examples of its own file."""
    limit: int | None = None
    """Ask the first so many questions of each task only, to try things out; results then stand for nothing."""
    readings: bool = False
    """Report multiple choice by every reading of a candidate's perplexity (docs/evaluation.md); takes longer."""
    add_bos_token: bool = True
    """Begin every text with `<s>`, as documents in training do."""
    chat: Literal["none", "turns", "message"] = "none"
    """Ask a tuned run in its chat template: "turns" gives each example as a question and its answer, "message" gives
    all in one message of the user's; "none" asks plain text, as of a run that was not tuned."""
    hub: bool = False
    """Let tasks fetch their questions from the Hugging Face hub; without, only local files and its cache are read."""
    data: str | None = None
    """Folder with local questions in eval/; by default that of MINDLLM_DATA, or ../shared/data."""
    paper_model: str = "MindLLM-1.3B"
    """Whose figures of the paper stand beside ours."""
    pack_tokens: int = 8192
    """Tokens in a forward. It changes speed and memory, not results."""
    batch_size: int = 64
    """Prompts that decode together. It changes speed and memory, not results."""

    @property
    def folder(self) -> Path:
        """Where the results go. Raises CheckpointError where `run` holds no checkpoint."""
        if self.out is not None:
            return Path(self.out)
        return (
            find_checkpoint(Path(self.run)).parents[1]
            / "evaluation"
            / (Path(self.suite).stem if self.suite else "tasks")
        )

    def validate(self) -> None:
        """Raises ConfigError naming the option that cannot be."""
        if bool(self.suite) == bool(self.tasks):
            raise ConfigError("evaluate: give either suite or tasks")
        for name in ("limit", "pack_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"evaluate: {name} must be at least 1, not {value}")


def evaluate(arguments: EvaluateArguments, world: World) -> dict[str, Any] | None:
    """Ask every entry of the suite; the contents of results.json on rank 0, None on others.

    Raises:
        ConfigError: options that contradict each other, an unknown task (with the nearest name), lm-eval not installed.
        CheckpointError: the run has no checkpoint.
        DataError: a tokenizer that is not the network's, questions that are missing or of the wrong form.
    """
    arguments.validate()
    if not arguments.hub:  # read when those libraries are first imported, which is below
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    suite = read_suite(arguments.suite) if arguments.suite else suite_of(arguments.tasks)
    out = arguments.folder
    lm, checkpoint = _open_model(arguments, world)
    with _rank_0_first(world):
        manager = open_suite(suite, out / "local_tasks", data_folder(arguments.data))
    results: dict[str, Any] = {
        "checkpoint": checkpoint,
        "limit": arguments.limit,
        "chat": arguments.chat,
        "entries": {},
    }
    for entry in suite.tasks:
        settings = _settings(arguments, entry, checkpoint, lm, suite)
        found = _finished(out, entry, settings, world)
        if found is None:
            built = _built(replace(suite, tasks=(entry,)), manager, entry)
            found = _ask(lm, entry, built, manager, arguments, settings, out)
            if world.is_first:
                print(f"asked {entry.task} in {found['seconds']:.0f} s", file=sys.stderr, flush=True)
        results["entries"][entry.task] = found
    if not world.is_first:
        return None
    write_atomically(out / "results.json", orjson.dumps(results, option=orjson.OPT_INDENT_2))
    write_atomically(out / "results.md", markdown_table(results, suite, arguments.paper_model).encode())
    return results


def _open_model(arguments: EvaluateArguments, world: World) -> "tuple[EngineLM, str]":
    """The run's network as lm-eval takes it, and what says which it is."""
    source = Path(arguments.run)
    checkpoint = find_checkpoint(source)
    state = load_state(checkpoint)
    tokenizer = tokenizer_of(checkpoint)
    model, _ = load_model(checkpoint, world.device)
    refuse_nan(model, checkpoint)
    try:
        from mindllm_engine.evaluation.lm_eval_adapter import EngineLM
    except ImportError as error:
        raise ConfigError(f"evaluation needs {error.name}; install mindllm-engine[eval]") from error
    lm = EngineLM(
        model,
        tokenizer,
        world,
        add_bos_token=arguments.add_bos_token,
        template=None if arguments.chat == "none" else load_template(checkpoint.parent.parent, tokenizer),
        read_prompts=arguments.readings,
        pack_tokens=arguments.pack_tokens,
        batch_size=arguments.batch_size,
        progress=show_progress if world.is_first else None,
    )
    # The files' hashes tell a run that was trained again from the one before.
    return lm, f"{checkpoint} ({sorted(state.files.items())[0][1]})"


def _settings(
    arguments: EvaluateArguments, entry: SuiteTask, checkpoint: str, lm: "EngineLM", suite: Suite
) -> dict[str, Any]:
    """All that results depend on."""
    import lm_eval

    kept = {name: getattr(arguments, name) for name in ("limit", "readings", "add_bos_token", "chat")}
    template = None if lm.template is None else asdict(lm.template.config)
    files = " ".join(file_hash(path) for path in files_of(entry, suite, data_folder(arguments.data)))
    settings: dict[str, Any] = orjson.loads(
        orjson.dumps(
            {
                "checkpoint": checkpoint,
                "entry": asdict(entry),
                **kept,
                "template": template,
                "files": xxhash.xxh3_64_hexdigest(files.encode()),
                "lm_eval": lm_eval.__version__,
            }
        )
    )
    return settings


def _finished(out: Path, entry: SuiteTask, settings: dict[str, Any], world: World) -> dict[str, Any] | None:
    """The results of an entry that was asked before; all ranks go by what rank 0 finds."""
    found: list[Any] = [None]
    if world.is_first:
        with contextlib.suppress(OSError, ValueError):
            content = orjson.loads(_file(out, entry, ".json").read_bytes())
            if isinstance(content, dict) and content.get("settings") == settings:
                found = [content]
    if world.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    result: dict[str, Any] | None = found[0]
    return result


def _built(suite: Suite, manager: Any, entry: SuiteTask) -> list[Any]:
    """An entry's tasks with their questions."""
    try:
        built = build_tasks(suite, manager)
        for task in _leaves(built):
            _check_examples(task)
    except MindLLMError:
        raise
    # Whatever reading questions raises: of the network, of `datasets`, of a task's templates.
    except Exception as error:
        raise DataError(
            f"task {entry.task}: its questions cannot be loaded ({_reason(error)}); check the files and columns that "
            "its task file names, give it local files, or --hub true to fetch them"
        ) from error
    return built


def _check_examples(task: Any) -> None:
    """Raises DataError where a task has fewer examples than stand before each question."""
    wanted = task.config.num_fewshot or 0
    if wanted:
        asked_too = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.config.test_split
        found = len(list(task.fewshot_docs())) - asked_too  # a question is not its own example
        if wanted > found:
            raise DataError(
                f"task {task.task_name}: num_fewshot is {wanted}, and there are {found} examples to take; ask with "
                f"{found} or fewer, or give it more"
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _unfit_record(entry: SuiteTask, built: list[Any], error: Exception) -> DataError:
    """What a task file or a question did to lm-eval: the record whose prompt cannot be made, if it is one's."""
    for task in _leaves(built):
        for number, doc in enumerate(task.eval_docs):
            try:
                context = task.fewshot_context(doc, task.config.num_fewshot or 0)
                task.construct_requests(doc, context, metadata=(task.task_name, number, 1))
            except Exception as found:
                return DataError(
                    f"task {task.task_name}, record {number}: its prompt cannot be made ({_reason(found)}); mend the "
                    "task file, or the question"
                )
    return DataError(f"task {entry.task}: lm-eval cannot ask or score it ({_reason(error)}); mend the task file")


def _ask(
    lm: "EngineLM",
    entry: SuiteTask,
    built: list[Any],
    manager: Any,
    arguments: EvaluateArguments,
    settings: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Ask one entry and write down what came of it."""
    import lm_eval

    started = time.perf_counter()
    lm.forget_requests()
    # Bars of lm-eval's own would run through ours; what goes wrong is raised.
    with contextlib.redirect_stderr(_NoBars(sys.stderr)):
        try:
            raw = lm_eval.simple_evaluate(
                model=lm,
                tasks=built,
                task_manager=manager,
                limit=min(filter(None, (arguments.limit, entry.limit)), default=None),
                bootstrap_iters=BOOTSTRAP_ROUNDS if lm.world.is_first else 0,
                log_samples=True,
                apply_chat_template=arguments.chat != "none",
                fewshot_as_multiturn=arguments.chat == "turns",
            )
        except MindLLMError:
            raise
        except Exception as error:
            if _is_ours(error):
                raise
            raise _unfit_record(entry, built, error) from error
    if not lm.world.is_first:
        return {}
    tasks = {task.task_name: task for task in _leaves(built)}
    found = {
        "settings": settings,
        "seconds": time.perf_counter() - started,
        "notes": dict(lm.notes),
        "scores": [asdict(each) for each in entry_scores(entry, raw)],
        "readings": readings_of(tasks, raw["samples"], lm.candidate_scores) if arguments.readings else {},
        "results": {name: dict(values) for name, values in raw["results"].items()},
        "group_subtasks": raw.get("group_subtasks", {}),
        "n-shot": raw["n-shot"],
        "versions": raw["versions"],
    }
    samples = io.BytesIO()
    with gzip.GzipFile(fileobj=samples, mode="wb", mtime=0) as file:
        for name, lines in raw["samples"].items():
            for line in lines:
                file.write(_json({"task": name, **line}) + b"\n")
    write_atomically(_file(out, entry, ".samples.jsonl.gz"), samples.getvalue())
    write_atomically(_file(out, entry, ".json"), _json(found, orjson.OPT_INDENT_2))
    content: dict[str, Any] = orjson.loads(_json(found))
    return content


def _is_ours(error: Exception) -> bool:
    """Whether it came up within the adapter, and not in what lm-eval does with tasks."""
    adapter = "mindllm_engine.evaluation.lm_eval_adapter"
    return any(frame.f_globals.get("__name__") == adapter for frame, _ in traceback.walk_tb(error.__traceback__))


def _leaves(built: list[Any]) -> Iterator[Any]:
    """Tasks, those of groups included."""
    for each in built:
        yield from each.get_all_tasks() if hasattr(each, "get_all_tasks") else [each]


def _file(out: Path, entry: SuiteTask, suffix: str) -> Path:
    return out / "tasks" / (re.sub(r"[^\w.-]", "_", entry.task) + suffix)


def _json(content: Any, option: int = 0) -> bytes:
    return orjson.dumps(content, default=str, option=option | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)


@contextlib.contextmanager
def _rank_0_first(world: World) -> Iterator[None]:
    """Rank 0 does what is within before the others: it writes what they read."""
    if world.is_first:
        failure: MindLLMError | None = None
        try:
            yield
        except MindLLMError as error:
            failure = error
        raise_together(failure, "rank 0 cannot open the suite")
    else:
        raise_together(None, "rank 0 cannot open the suite")
        yield


class _NoBars(io.TextIOBase):
    """Lets through to stderr what is no progress bar of tqdm's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._in_bar = False

    def write(self, text: str) -> int:
        is_bar = "\r" in text or "it/s]" in text
        if not is_bar and not (self._in_bar and text == "\n"):  # a bar ends with a line feed by itself
            self._stream.write(text)
        self._in_bar = is_bar or (self._in_bar and not text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())


@contextlib.contextmanager
def show_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr over the requests of one call."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # The true stderr: what stands in its place here is no terminal.
    console = Console(file=sys.__stderr__)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, advance=done)
