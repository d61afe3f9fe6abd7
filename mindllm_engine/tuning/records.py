"""Reads instruction data: JSON lines, plain, gzipped or zstandard, one record a line, in any of the shapes in use.

    {"instruction": ..., "input": ..., "output": ...}     Alpaca, MingLi; instruction or input may be missing or empty
    {"messages": [{"role": "user", "content": ...}, ...]}  chats; ShareGPT's conversations/from/value alike

A record that cannot be learnt from comes as `BadRecord` with its file and line; nothing is dropped in silence.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindllm_engine.corpus.chat_template import ROLES, Message, Role
from mindllm_engine.corpus.json_lines import parse_line, read_lines

# Names in use for the roles.
_ROLES: dict[str, Role] = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant", "bot": "assistant"}
ASSISTANT_NAMES = [name for name, role in _ROLES.items() if role == "assistant"]


@dataclass(frozen=True)
class Record:
    """A chat whose last message is an answer.

    Attributes:
        where: file and line, for messages about it: `alpaca_zh.jsonl.gz:12`.
        messages: at least one of the user and, last, one of the assistant.
        id, lang: where the record says so.
    """

    where: str
    messages: tuple[Message, ...]
    id: str | None = None
    lang: str | None = None

    @property
    def response(self) -> str:
        """The last answer."""
        return self.messages[-1].content


@dataclass(frozen=True)
class BadRecord:
    """A line that cannot be learnt from, and why: `alpaca_zh.jsonl.gz:12`, `empty response`."""

    where: str
    reason: str


def read_records(path: str | Path) -> Iterator[Record | BadRecord]:
    """The records of a file in their order.

    Raises:
        DataError: the file is missing or damaged. A bad line is no error here: it comes as `BadRecord`.
    """
    name = Path(path).name
    for number, line in read_lines(path):
        yield parse_record(f"{name}:{number}", line)


def parse_record(where: str, line: bytes) -> Record | BadRecord:
    """The record in a line of JSON; `where` names file and line."""
    content = parse_line(line)
    try:
        return Record(where, messages_of(content), _text(content, "id"), _text(content, "lang"))
    except ValueError as error:
        return BadRecord(where, str(error))


def messages_of(content: Any) -> tuple[Message, ...]:
    """The chat in a record's JSON. Raises ValueError with the reason where there is nothing to learn from."""
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    chat = chat_of(content)
    messages = _chat(chat) if chat is not None else _instruction(content)
    for message in messages:
        if message.role != "system" and is_blank(message.content):
            what = {"user": "instruction", "assistant": "response"}[message.role]
            raise ValueError(f"empty {what}" if not message.content else f"{what} of only whitespace")
    if messages[-1].role != "assistant":
        raise ValueError("the last message is not the assistant's")
    if messages[0].role == "assistant":
        raise ValueError("the first message is the assistant's")
    if all(message.role != "user" for message in messages):
        raise ValueError("no message is the user's")
    return messages


def chat_of(content: dict[str, Any]) -> Any:
    """What stands under `messages` or `conversations`; None where neither does."""
    chat = content.get("messages")
    return content.get("conversations") if chat is None else chat


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, controls and formats such as a zero-width space, if anything."""
    return all(letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf") for letter in text)


def _instruction(content: dict[str, Any]) -> tuple[Message, ...]:
    for key in ("instruction", "input", "output"):
        if not isinstance(content.get(key, ""), str | None):
            raise ValueError(f"{key} is no text")
    if "output" not in content or not ("instruction" in content or "input" in content):
        raise ValueError(f"neither instruction, input and output nor messages, but {', '.join(content) or 'nothing'}")
    asked = [part for part in (content.get("instruction"), content.get("input")) if part]
    return (Message("user", "\n".join(asked)), Message("assistant", content["output"] or ""))


def _chat(chat: Any) -> tuple[Message, ...]:
    if not isinstance(chat, list) or not chat:
        raise ValueError("messages is no list, or an empty one")
    messages = []
    for entry in chat:
        if not isinstance(entry, dict):
            raise ValueError("a message is no JSON object")
        role, text = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
        if not isinstance(role, str) or role not in _ROLES:
            raise ValueError(f"a message is of none of the roles {', '.join(_ROLES)}")
        if not isinstance(text, str):
            raise ValueError(f"a message of the {_ROLES[role]} has no text")
        messages.append(Message(_ROLES[role], text))
    return tuple(messages)


def _text(content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    return value if isinstance(value, str) else None
