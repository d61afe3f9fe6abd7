"""The questions of a task from local files: checked record by record, then in the columns of the task's home.

A *shape* says what the records of one benchmark look like. `check_task_data` reads a whole file before anything runs
and names the file and line of what is wrong in it; `load_records` is what a task file's `custom_dataset` calls, so that
lm-eval's own prompts are filled from local files, without its cache and without a network.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindllm_engine.command_line import printable
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.errors import DataError

LETTERS = "ABCDEFGH"

Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What the records of a benchmark look like.

    Attributes:
        columns: column -> a function that gives what is wrong with its value, or None.
        check: gives what is wrong between the columns, or None; called where each column is right.
        convert: the record in the columns that the task's templates read.
        subject: the column by which a file falls into tasks, None where a file is one task.
    """

    columns: Mapping[str, Callable[[Any], str | None]]
    check: Callable[[Json], str | None] = lambda record: None
    convert: Callable[[Json], Json] = lambda record: record
    subject: str | None = None


def check_task_data(path: str | Path, shape_name: str) -> int:
    """Read a file of questions to its end. Returns the number of records.

    Raises:
        DataError: the file is missing, damaged or empty, or a record has a missing column, an empty choice or an answer
            outside its choices; the message names the first such record and counts all.
    """
    return len(_read(Path(path), shape_name))


def load_records(files: Mapping[str, str], shape: str, subject: str | None = None, **metadata: Any) -> "dict[str, Any]":
    """split -> `datasets.Dataset`: what lm-eval calls for a task with `custom_dataset`, with its `dataset_kwargs`.

    Args:
        files: split -> file of JSON lines, plain or compressed.
        shape: a key of `SHAPES`.
        subject: only the records of this subject.
        metadata: lm-eval's, not used.

    Raises:
        DataError: as `check_task_data`, and for a subject without records.
    """
    import datasets

    found = {}
    for split, path in files.items():
        records = [record for of, record in _read(Path(path), shape) if subject is None or of == subject]
        if not records:
            raise DataError(f"{path}: no record of subject {subject}; give the file that holds it")
        found[split] = datasets.Dataset.from_list([SHAPES[shape].convert(record) for record in records])
    return found


def subjects_in(path: str | Path, shape: str) -> list[str]:
    """The subjects of a file's records, sorted. Raises DataError as `check_task_data`."""
    return sorted({subject for subject, _ in _read(Path(path), shape) if subject is not None})


def _read(path: Path, shape_name: str) -> list[tuple[str | None, Json]]:
    """(subject, record) of a file, each sound."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return _read_as_it_is(path, shape_name, (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=16)
def _read_as_it_is(path: Path, shape_name: str, state: tuple[int, int]) -> list[tuple[str | None, Json]]:
    """`_read`, kept: the 57 subjects of a benchmark share a file. Another `state` of the file is another key."""
    shape = SHAPES[shape_name]
    records: list[tuple[str | None, Json]] = []
    bad: list[str] = []
    for where, record in read_json_lines(path):
        wrong = _what_is_wrong(record, shape)
        if wrong is not None:
            bad.append(f"{where}: {wrong}")
        else:
            records.append((record[shape.subject] if shape.subject else None, record))
    if bad:
        of = len(records) + len(bad)
        raise DataError(
            f"{path.parent / bad[0]} ({len(bad)} of {of} records are unfit for {shape_name}); mend the file"
        )
    if not records:
        raise DataError(f"{path}: no records; give a file with one question a line")
    return records


def _what_is_wrong(record: Any, shape: Shape) -> str | None:
    if not isinstance(record, dict):
        return "not a JSON object"
    for column, check in shape.columns.items():
        if column not in record:
            return f"no column {column}; found {printable(', '.join(record)) or 'none'}"
        wrong = check(record[column])
        if wrong is not None:
            return f"{column} {wrong}"
    return shape.check(record)


# What a value must be.


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not text"
    return None if value.strip() else "is empty"


def _choices(count: int | None = None) -> Callable[[Any], str | None]:
    """A list of texts, none empty: `count` of them, or at least two."""

    def check(value: Any) -> str | None:
        if not isinstance(value, list):
            return f"is {type(value).__name__}, not a list"
        if len(value) != count if count else len(value) < 2:
            return f"has {len(value)} entries, not {count or 'two or more'}"
        for letter, choice in zip(LETTERS, value, strict=False):
            wrong = _text(choice)
            if wrong is not None:
                return f"{letter} {wrong}"
        return None

    return check


def _one_of(*allowed: Any) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        # 0 == False in Python, and a label that is a truth value is another file than we think.
        fits = any(value == one and type(value) is type(one) for one in allowed)
        return None if fits else f"is {value!r}, not one of {', '.join(map(repr, allowed))}"

    return check


def _index_within(answer: str, choices: str) -> Callable[[Json], str | None]:
    """The column `answer` is a position in the list `choices`."""

    def check(record: Json) -> str | None:
        value, count = record[answer], len(record[choices])
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
            return None
        return f"{answer} is {value!r}, outside its choices 0 to {count - 1}"

    return check


def _contexts(value: Any) -> str | None:
    if not isinstance(value, dict) or "contexts" not in value:
        return "has no list contexts"
    return None if isinstance(value["contexts"], list) and value["contexts"] else "has an empty list contexts"


def _anything(value: Any) -> None:
    return None


# The shapes. The local files keep choices in a list and answers as letters; the hub's columns differ by benchmark.


def _mmlu(record: Json) -> Json:
    return {**record, "answer": LETTERS.index(record["answer"])}


def _cmmlu(record: Json) -> Json:
    choices = dict(zip("ABCD", record["choices"], strict=True))
    return {"Question": record["question"], **choices, "Answer": record["answer"]}


def _hellaswag(record: Json) -> Json:
    # The file holds what lm-eval's process_docs makes of the hub's columns, which a second time would change.
    return {"query": record["context"], "choices": record["endings"], "label": record["label"]}


def _gsm8k_answer(record: Json) -> str | None:
    return None if "#### " in record["answer"] else "answer has no last line '#### number'"


_QUESTION = {"subject": _text, "question": _text, "choices": _choices(4), "answer": _one_of(*"ABCD")}
_ETHICS_LABEL = _one_of(0, 1)

SHAPES: dict[str, Shape] = {
    "mmlu": Shape(_QUESTION, convert=_mmlu, subject="subject"),
    "cmmlu": Shape(_QUESTION, convert=_cmmlu, subject="subject"),
    "arithmetic": Shape({"task": _text, "context": _text, "completion": _text}, subject="task"),
    "gsm8k": Shape({"question": _text, "answer": _text}, _gsm8k_answer),
    "hellaswag": Shape(
        {"context": _text, "endings": _choices(4), "label": _anything},
        _index_within("label", "endings"),
        convert=_hellaswag,
    ),
    # Of our own task files, in the columns of their home on the hub.
    "mindllm_logiqa": Shape(
        {"context": _text, "query": _text, "options": _choices(4), "correct_option": _anything},
        _index_within("correct_option", "options"),
    ),
    "mindllm_pubmedqa": Shape(
        {"question": _text, "context": _contexts, "final_decision": _one_of("yes", "no", "maybe")}
    ),
    "mindllm_ethics_commonsense": Shape({"input": _text, "label": _ETHICS_LABEL}),
    "mindllm_ethics_deontology": Shape({"scenario": _text, "excuse": _text, "label": _ETHICS_LABEL}),
    "mindllm_ethics_justice": Shape({"scenario": _text, "label": _ETHICS_LABEL}),
    "mindllm_ethics_utilitarianism": Shape({"activity": _text, "baseline": _text}),
    "mindllm_ethics_virtue": Shape({"scenario": _text, "trait": _text, "label": _ETHICS_LABEL}),
} | {
    f"mindllm_flores_{pair}": Shape({"sentence_eng_Latn": _text, f"sentence_{chinese}": _text})
    for chinese in ("zho_Hans", "zho_Hant")
    for pair in (f"eng_Latn-{chinese}", f"{chinese}-eng_Latn")
}
