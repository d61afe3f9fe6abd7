"""Law data for tuning (arXiv 2310.15777, section 6.1): records of several shapes to chats, kept where two tokenizers
agree on a range of lengths, with balanced numbers in the ranges (Table 22).

The lengths count the texts of all messages and nothing of a template, which each network has its own. A record that is
left out is counted under a reason; the choice is by a hash of the record, so it does not depend on the order of files.
"""

import ast
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindllm_engine.corpus.chat_template import Message, Role
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, open_tokenizer
from mindllm_engine.corpus.prepare import tokenizer_file
from mindllm_engine.corpus.readers import expand_paths
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.tuning.record_files import (
    content_key,
    fill,
    message_rows,
    refuse_to_overwrite,
    stable_sample,
    write_json_lines,
    write_summary,
)
from mindllm_engine.tuning.records import messages_of

_BATCH = 256  # records encoded at a time
_EXAMPLES = 20  # bad records named in the summary

# What consultations write before what is said.
_SPEAKERS: dict[str, Role] = {"[客户]": "user", "[律师]": "assistant"}


@dataclass
class LengthRange:
    """Records of a length, in tokens of either tokenizer."""

    min_tokens: int
    """The least length that belongs to it."""
    max_tokens: int
    """The greatest."""
    size: int | None = None
    """Records to keep of it; empty for as many as the range with the fewest has."""

    @property
    def name(self) -> str:
        return f"{self.min_tokens}-{self.max_tokens}"


@dataclass
class LawConfig:
    """Which records become tuning data."""

    input: str | list[str]
    """Path or glob of .jsonl, .jsonl.gz or .jsonl.zst files, or a list: instruction, input and output; messages; query
    and response; or a consultation of query and history. `laws`, where a record has them, go before the question."""
    tokenizers: list[str]
    """Two tokenizer files, or run folders: a record stays if its length lies in the same range by both."""
    ranges: list[LengthRange]
    """The ranges of lengths, which must not overlap."""
    out: str
    """File of JSON lines to write; its counts go to the same name with .summary.json."""
    question_with_laws: str = "{query}\n\n可供参考的法律条文：\n{laws}"
    """How the articles of law stand with the question. The wording is this project's."""
    seed: int = 0
    """Names the choice of records where there are more than asked for."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first key that cannot be used."""
        if len(self.tokenizers) != 2:
            raise ConfigError(f"tokenizers: {len(self.tokenizers)} given; the ranges are over two")
        if not self.ranges:
            raise ConfigError("ranges is empty; name one range of lengths at least")
        for part in self.ranges:
            if not 0 <= part.min_tokens <= part.max_tokens:
                raise ConfigError(f"ranges: {part.name} is no range; min_tokens must be in 0..max_tokens")
            if part.size is not None and part.size < 1:
                raise ConfigError(f"ranges: size of {part.name} is {part.size}; it must be at least 1")
        ordered = sorted(self.ranges, key=lambda part: part.min_tokens)
        for left, right in itertools.pairwise(ordered):
            if left.max_tokens >= right.min_tokens:
                raise ConfigError(f"ranges: {left.name} and {right.name} overlap")
        if self.question_with_laws.count("{query}") != 1 or self.question_with_laws.count("{laws}") != 1:
            raise ConfigError("question_with_laws must hold {query} and {laws} exactly once each")


@dataclass(frozen=True)
class LawRecord:
    """A chat of law and its length by each tokenizer."""

    key: str
    id: str
    kind: str
    messages: tuple[Message, ...]
    lengths: tuple[int, int]

    def row(self, range_name: str) -> dict[str, Any]:
        """As it is written, which tuning/records.py reads."""
        return {
            "id": self.id,
            "kind": self.kind,
            "range": range_name,
            "tokens": list(self.lengths),
            "messages": message_rows(self.messages),
        }


@dataclass
class LawReport:
    """What came of the records.

    Attributes:
        records: lines read.
        found: range -> records of that length by both tokenizers.
        kept: range -> records written.
        kinds: range -> kind -> records written.
        left_out: reason -> records; with `kept` they add up to `records`.
        bad: the first bad records, by file, line and reason.
    """

    records: int = 0
    found: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def prepare_law(config: LawConfig, show: Callable[[int], None] | None = None) -> LawReport:
    """Read, filter, balance and write.

    Args:
        show: called with the number of records read, now and then.

    Raises:
        ConfigError: a key that cannot be used.
        DataError: a file or tokenizer is missing or damaged, or no record is left.
    """
    config.validate()
    paths = expand_paths(config.input)
    out = Path(config.out)
    refuse_to_overwrite(paths, [out, summary_path(out)])
    first, second = (open_tokenizer(tokenizer_file(path)) for path in config.tokenizers)
    report = LawReport()
    by_range: dict[str, list[LawRecord]] = {part.name: [] for part in config.ranges}
    chats = _distinct_chats(paths, config.question_with_laws, report)
    while batch := list(itertools.islice(chats, _BATCH)):
        for record in _with_lengths(batch, first, second, report):
            place = _range_or_reason(record.lengths, config.ranges)
            if isinstance(place, LengthRange):
                by_range[place.name].append(record)
            else:
                report.left_out[place] += 1
        if show is not None:
            show(report.records)
    fewest = min(len(records) for records in by_range.values())
    rows: list[dict[str, Any]] = []
    for part in config.ranges:
        found = by_range[part.name]
        kept = stable_sample(found, fewest if part.size is None else part.size, lambda record: record.key, config.seed)
        report.found[part.name], report.kept[part.name] = len(found), len(kept)
        report.kinds[part.name] = dict(sorted(Counter(record.kind for record in kept).items()))
        if len(found) > len(kept):
            report.left_out["more than its range takes"] += len(found) - len(kept)
        rows += [record.row(part.name) for record in kept]
    if not rows:
        empty = [name for name, found in report.found.items() if not found]
        raise DataError(
            f"no record is left of {report.records}: no record has the length {', '.join(empty)} by both tokenizers; "
            f"change ranges, or give each a size (left out: {dict(report.left_out)})"
        )
    write_json_lines(out, rows)
    write_summary(summary_path(out), {**vars(report), "left_out": dict(report.left_out)})
    return report


def summary_path(out: Path) -> Path:
    """Where the counts of the data in `out` stand: law.jsonl -> law.summary.json."""
    return out.with_name(out.name.removesuffix(".jsonl") + ".summary.json")


def law_messages(content: Any, question_with_laws: str) -> tuple[Message, ...]:
    """The chat in a record of law, in any of the shapes of `LawConfig.input`.

    Raises:
        ValueError: with the reason where there is nothing to learn from.
    """
    if not isinstance(content, dict) or "query" not in content:
        return messages_of(content)
    query, laws = content["query"], _laws(content.get("laws"))
    if not isinstance(query, str):
        raise ValueError("query is no text")
    if "history" in content:
        messages = _consultation(content["history"])
    elif isinstance(content.get("response"), str):
        messages = [Message("user", query), Message("assistant", content["response"])]
    else:
        raise ValueError("a query has neither history nor response")
    chat = messages_of({"messages": message_rows(messages)})  # for its checks
    if not laws:
        return chat
    question = fill(question_with_laws, query=chat[0].content, laws="\n".join(laws))
    return (Message("user", question), *chat[1:])


def _laws(laws: Any) -> list[str]:
    """The articles: a list, or a list written as text, as one of the published files has it."""
    if isinstance(laws, str) and laws.strip():
        try:
            laws = ast.literal_eval(laws)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            laws = [laws]
    laws = laws or []
    if not isinstance(laws, list) or not all(isinstance(law, str) for law in laws):
        raise ValueError("laws is no list of texts")
    return laws


def _consultation(history: Any) -> list[Message]:
    """`[客户] ...`, `[律师] ...` in turn, from the client's first words to the lawyer's last."""
    if not isinstance(history, list) or not history:
        raise ValueError("history is no list, or an empty one")
    messages: list[Message] = []
    for entry in history:
        speaker = next((name for name in _SPEAKERS if isinstance(entry, str) and entry.startswith(name)), None)
        if speaker is None:
            raise ValueError(f"an entry of history begins with neither of {', '.join(_SPEAKERS)}")
        messages.append(Message(_SPEAKERS[speaker], entry.removeprefix(speaker).strip()))
    for earlier, later in itertools.pairwise(messages):
        if earlier.role == later.role:
            raise ValueError("history has two entries of one speaker in a row")
    return messages


def _distinct_chats(
    paths: list[str], question_with_laws: str, report: LawReport
) -> Iterator[tuple[str, str, str, tuple[Message, ...]]]:
    """(key, id, kind, messages) of each chat that says something new; the rest is counted."""
    seen: set[str] = set()
    for path in paths:
        for where, content in read_json_lines(path):
            report.records += 1
            try:
                messages = law_messages(content, question_with_laws)
            except ValueError as error:
                report.left_out[f"bad: {error}"] += 1
                if len(report.bad) < _EXAMPLES:
                    report.bad.append(f"{where}: {error}")
                continue
            key = content_key(*(text for message in messages for text in (message.role, message.content)))
            if key in seen:
                report.left_out["says the same as another"] += 1
                continue
            seen.add(key)
            yield key, str(content.get("id", where)), str(content.get("kind", "")), messages


def _with_lengths(
    batch: list[tuple[str, str, str, tuple[Message, ...]]],
    first: TextTokenizer,
    second: TextTokenizer,
    report: LawReport,
) -> Iterator[LawRecord]:
    """The chats with their lengths; one that cannot be encoded is counted."""
    for key, id, kind, messages in batch:
        texts = [message.content for message in messages]
        try:
            lengths = tuple(int(tokenizer.encode_batch(texts)[1].sum()) for tokenizer in (first, second))
        except DataError as error:
            report.left_out[f"bad: {error}"] += 1
            continue
        yield LawRecord(key, id, kind, messages, (lengths[0], lengths[1]))


def _range_or_reason(lengths: tuple[int, int], ranges: list[LengthRange]) -> LengthRange | str:
    """The range that both lengths lie in, or why there is none."""
    places = [next((part for part in ranges if part.min_tokens <= n <= part.max_tokens), None) for n in lengths]
    if places[0] is not None and places[0] is places[1]:
        return places[0]
    if max(lengths) < min(part.min_tokens for part in ranges):
        return "shorter than all ranges"
    if min(lengths) > max(part.max_tokens for part in ranges):
        return "longer than all ranges"
    return "not in one range by both tokenizers"
