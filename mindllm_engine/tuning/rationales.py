"""Distils rationales for labelled records from a teacher (arXiv 2310.15777, section 6.2): a larger model behind any
OpenAI-compatible server explains each record's label, and a small one is tuned to reason before it answers.

A teacher's answer counts only if it parses strictly and comes to the record's own label; all else is a failure under a
reason. The two files for tuning, with and without the rationale, hold the same records, so that a comparison of them
shows the rationale alone. All answers go to rationales.jsonl as well, which serves offline as `answers` next time.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindllm_engine.chat_endpoint import ChatEndpoint, EndpointConfig, EndpointFailure
from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.tuning.record_files import (
    fill,
    message_rows,
    refuse_to_overwrite,
    write_json_lines,
    write_summary,
)
from mindllm_engine.tuning.records import BadRecord, messages_of

CONCLUSION = "结论："

_WRITTEN = (
    "with_rationale.jsonl",
    "without_rationale.jsonl",
    "rationales.jsonl",
    "failures.jsonl",
    "summary.json",
)


@dataclass
class RationaleConfig:
    """Which records are explained, by whom, and how."""

    input: str
    """JSON lines of id, text, label and messages, as tools/prepare_finance.py writes them."""
    out: str
    """Folder to write with_rationale.jsonl, without_rationale.jsonl, rationales.jsonl, failures.jsonl and summary.json
    to."""
    classes: list[str]
    """The names of the classes, from the worst to the best."""
    endpoint: EndpointConfig | None = None
    """The teacher; its `cache` keeps every answer over stops. Not needed where `answers` has one for each record."""
    answers: str | None = None
    """File of JSON lines of id and answer (such as rationales.jsonl of an earlier run), used before the endpoint is
    asked."""
    teacher: str = (
        "下面是一条财经文本，以及它的类别。类别是以下之一：{classes}。\n\n文本：{text}\n类别：{label}\n\n"
        "请用两到四句话，只根据文本分析为什么属于这个类别，不要提到类别是事先给出的。"
        "最后另起一行，只写“结论：”和类别名称。"
    )
    """What the teacher is asked, with {text} and {classes}. With {label} it explains a label that it is told; without,
    it has to find it, and a wrong conclusion fails. The wording is this project's."""
    question: str = (
        "请阅读下面的财经文本，先分析理由，再从以下选项中选出一项：{classes}。"
        "最后一行写“结论：”和所选的一项。\n\n文本：{text}"
    )
    """Template 2, which asks for reasons and then the class. The wording is this project's."""
    temperature: float = 0.0
    """How freely the teacher answers."""
    max_tokens: int = 512
    """The longest answer, in the teacher's tokens; one that is cut lacks its conclusion and fails."""
    min_chars: int = 10
    """The shortest rationale that counts, in characters."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first key that cannot be used."""
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"classes: {self.classes} must be two different names at least")
        for key in ("teacher", "question"):
            if any(getattr(self, key).count(name) != 1 for name in ("{text}", "{classes}")):
                raise ConfigError(f"{key} must hold {{text}} and {{classes}} exactly once each")
        if "{label}" in self.question:
            raise ConfigError("question: {label} would tell the answer")
        if self.endpoint is None and self.answers is None:
            raise ConfigError("endpoint: name a teacher, or a file of answers")
        if self.endpoint is not None:
            try:
                self.endpoint.validate()
            except ConfigError as error:
                raise ConfigError(f"endpoint.{error}") from error
        if self.temperature < 0 or self.max_tokens < 1 or self.min_chars < 1:
            raise ConfigError("temperature must not be negative, and max_tokens and min_chars at least 1")


@dataclass(frozen=True)
class LabelledRecord:
    """A record to explain. `row` is all that its line holds."""

    where: str
    id: str
    text: str
    label: str
    row: dict[str, Any]


@dataclass
class RationaleReport:
    """What came of the records.

    Attributes:
        records: lines read.
        kept: class -> records written, to each of the two files.
        failures: reason -> records; with `kept` they add up to `records`.
        from_file: answers taken from the file of answers.
        requests: requests sent to the teacher, those sent again included.
        label_told: whether the teacher was told the label.
    """

    records: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    from_file: int = 0
    requests: int = 0
    label_told: bool = False


def distill_rationales(config: RationaleConfig, show: Callable[[int, int], None] | None = None) -> RationaleReport:
    """Ask, check and write.

    Args:
        show: called with (records answered, records to ask for).

    Raises:
        ConfigError: a key that cannot be used, or a teacher that cannot be reached.
        DataError: a file is missing or damaged, or not one rationale is left.
    """
    config.validate()
    folder = Path(config.out)
    refuse_to_overwrite([config.input], [folder / name for name in _WRITTEN])
    report = RationaleReport(kept=dict.fromkeys(config.classes, 0), label_told="{label}" in config.teacher)
    records, failures = read_labelled(config.input, config.classes)
    report.records = len(records) + len(failures)
    of_file = _answers_of_file(config.answers) if config.answers else {}
    answers: dict[str, str | EndpointFailure] = dict(of_file)
    report.from_file = sum(record.id in answers for record in records)
    unanswered = [record for record in records if record.id not in answers]
    if unanswered and config.endpoint is not None:
        answers |= _ask(config, config.endpoint, unanswered, report, show)
    with_rationale, without, given = [], [], []
    for record in records:
        answer = answers.get(record.id, EndpointFailure("no answer in the file"))
        if isinstance(answer, str):
            given.append({"id": record.id, "answer": answer})
            try:
                rationale = parse_answer(answer, record.label, config.classes, config.min_chars)
            except ValueError as error:
                failures.append(_failure(record.where, record.id, str(error)))
                continue
            report.kept[record.label] += 1
            with_rationale.append(_with_rationale(record, rationale, config))
            without.append(record.row)
        else:
            failures.append(_failure(record.where, record.id, f"no answer: {answer.reason}"))
    # An answer that was paid for stays, whatever became of this run.
    rationales = folder / "rationales.jsonl"
    earlier = _answers_of_file(str(rationales)) if rationales.exists() else {}
    answered = {row["id"] for row in given}
    given += [{"id": id, "answer": answer} for id, answer in (earlier | of_file).items() if id not in answered]
    report.failures = Counter(failure["reason"] for failure in failures)
    write_json_lines(rationales, given)  # first: they cost money
    write_json_lines(folder / "failures.jsonl", failures)
    write_summary(folder / "summary.json", {**vars(report), "failures": dict(report.failures)})
    if not with_rationale:
        raise DataError(
            f"{folder}: not one of {report.records} records has a rationale to learn from: "
            f"{dict(report.failures.most_common(3))}; failures.jsonl names them"
        )
    write_json_lines(folder / "with_rationale.jsonl", with_rationale)
    write_json_lines(folder / "without_rationale.jsonl", without)
    return report


def parse_answer(answer: str, label: str, classes: list[str], min_chars: int) -> str:
    """The rationale in a teacher's answer, without its conclusion.

    The answer must end with the one line `结论：<class>`, naming one class and nothing else.

    Raises:
        ValueError: with the reason why it cannot be used.
    """
    lines = answer.strip().splitlines()
    conclusions = [line for line in lines if line.strip().startswith(CONCLUSION)]
    if not conclusions:
        raise ValueError("no line of the answer begins with 结论：")
    if len(conclusions) > 1 or conclusions[0] is not lines[-1]:
        raise ValueError("the answer does not end with its one conclusion")
    concluded = lines[-1].strip().removeprefix(CONCLUSION).strip().rstrip("。")
    if concluded not in classes:
        raise ValueError("the conclusion is none of the classes")
    if concluded != label:
        raise ValueError("the conclusion is another class than the label")
    rationale = "\n".join(lines[:-1]).strip()
    if len(rationale) < min_chars:
        raise ValueError(f"the rationale is shorter than {min_chars} characters")
    return rationale


def read_labelled(path: str, classes: list[str]) -> tuple[list[LabelledRecord], list[dict[str, str]]]:
    """The records to explain, and those that cannot be used, as failures. Raises DataError for a damaged file."""
    records: list[LabelledRecord] = []
    failures: list[dict[str, str]] = []
    seen: set[str] = set()
    for where, content in read_json_lines(path):
        record = _labelled(where, content, classes)
        if isinstance(record, LabelledRecord) and record.id in seen:
            record = BadRecord(where, "an id that another record has")
        if isinstance(record, BadRecord):
            failures.append(_failure(where, "", f"bad record: {record.reason}"))
        else:
            seen.add(record.id)
            records.append(record)
    return records, failures


def _labelled(where: str, content: Any, classes: list[str]) -> LabelledRecord | BadRecord:
    try:
        messages_of(content)
    except ValueError as error:
        return BadRecord(where, str(error))
    for key in ("id", "text", "label"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            return BadRecord(where, f"no {key}")
    if content["label"] not in classes:
        return BadRecord(where, "its label is none of the classes")
    return LabelledRecord(where, content["id"], content["text"], content["label"], content)


def _answers_of_file(path: str) -> dict[str, str]:
    answers: dict[str, str] = {}
    for where, content in read_json_lines(path):
        if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in ("id", "answer")):
            raise DataError(f"{path}: {where}: expected a JSON object with the texts id and answer")
        if answers.setdefault(content["id"], content["answer"]) != content["answer"]:
            raise DataError(f"{path}: {where}: a second, different answer to {content['id']}; keep one")
    return answers


def _ask(
    config: RationaleConfig,
    endpoint: EndpointConfig,
    records: list[LabelledRecord],
    report: RationaleReport,
    show: Callable[[int, int], None] | None,
) -> dict[str, str | EndpointFailure]:
    options = "、".join(config.classes)
    chats = [
        [Message("user", fill(config.teacher, text=record.text, label=record.label, classes=options))]
        for record in records
    ]
    with ChatEndpoint(endpoint) as teacher:
        answers = teacher.complete_many(chats, config.temperature, config.max_tokens, show)
        report.requests = teacher.requests_sent
    return {record.id: answer for record, answer in zip(records, answers, strict=True)}


def _with_rationale(record: LabelledRecord, rationale: str, config: RationaleConfig) -> dict[str, Any]:
    question = fill(config.question, text=record.text, classes="、".join(config.classes))
    messages = [Message("user", question), Message("assistant", f"{rationale}\n{CONCLUSION}{record.label}")]
    return record.row | {"messages": message_rows(messages)}


def _failure(where: str, id: str, reason: str) -> dict[str, str]:
    return {"where": where, "id": id, "reason": reason}
