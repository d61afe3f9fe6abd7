"""What the models of an arena are asked: chats from JSON lines, with what the judge may check the answers against.

    {"query": ..., "laws": [...], "history": ["[客户] ...", "[律师] ...", ...]}   consultations; laws, history optional
    {"messages": [{"role": "user", "content": ...}, ...]}                         chats
    {"instruction": ..., "input": ...}                                            single questions; input optional

`id` names a prompt, else its file and line do. Answers that a record holds are not shown to the models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mindllm_engine.corpus.chat_template import ROLES, Message, Role
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.errors import DataError

Turn = Literal["first", "last"]

_SPEAKERS: dict[str, Role] = {"[客户]": "user", "[律师]": "assistant"}


@dataclass(frozen=True)
class Prompt:
    """A chat that ends with the user's message.

    Attributes:
        reference: shown to the judge beside the answers, such as articles of law; may be empty.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str = ""


@dataclass(frozen=True)
class BadPrompt:
    """A line that asks nothing, and why: `consultations.jsonl:12`, `empty query`."""

    where: str
    reason: str


def read_prompts(path: str | Path, turn: Turn, limit: int | None) -> tuple[list[Prompt], list[BadPrompt]]:
    """The first `limit` prompts of a file (None: all), and the lines up to there that hold none.

    Args:
        turn: of a chat with several questions, ask the first alone, or the last with all that was said before.

    Raises:
        DataError: the file cannot be read or holds no prompt.
    """
    prompts: dict[str, Prompt] = {}
    bad = []
    for where, content in read_json_lines(path):
        if limit is not None and len(prompts) >= limit:
            break
        try:
            prompt = _prompt(where, content, turn)
            if prompt.id in prompts:
                raise ValueError(f"the id {prompt.id!r} was there before")
            prompts[prompt.id] = prompt
        except ValueError as error:
            bad.append(BadPrompt(where, str(error)))
    if not prompts:
        first = f"; {bad[0].where}: {bad[0].reason}" if bad else ""
        raise DataError(f"{path}: holds no prompt{first}")
    return list(prompts.values()), bad


def _prompt(where: str, content: Any, turn: Turn) -> Prompt:
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    messages = _messages(content)
    questions = [number for number, message in enumerate(messages) if message.role == "user"]
    if not questions:
        raise ValueError("no message of the user")
    messages = messages[: questions[0 if turn == "first" else -1] + 1]
    if any(not message.content.strip() for message in messages):
        raise ValueError("an empty question or message")
    laws = content.get("laws") or []
    if not isinstance(laws, list) or not all(isinstance(law, str) for law in laws):
        raise ValueError("laws is no list of texts")
    return Prompt(str(content.get("id") or where), tuple(messages), "\n".join(laws))


def _messages(content: dict[str, Any]) -> list[Message]:
    if "messages" in content:
        return _chat(content["messages"])
    if "query" in content:
        history = content.get("history")
        return _consultation(history) if history else [Message("user", _text(content, "query"))]
    if "instruction" in content:
        asked = [_text(content, key) for key in ("instruction", "input") if content.get(key)]
        return [Message("user", "\n".join(asked))]
    raise ValueError(f"neither query, messages nor instruction, but {', '.join(content) or 'nothing'}")


def _chat(chat: Any) -> list[Message]:
    if not isinstance(chat, list):
        raise ValueError("messages is no list")
    messages = []
    for entry in chat:
        if not isinstance(entry, dict) or entry.get("role") not in ROLES or not isinstance(entry.get("content"), str):
            raise ValueError(f"a message must have a role of {', '.join(ROLES)} and a text as content")
        messages.append(Message(entry["role"], entry["content"]))
    return messages


def _consultation(history: Any) -> list[Message]:
    if not isinstance(history, list):
        raise ValueError("history is no list")
    messages = []
    for said in history:
        speaker, _, text = said.partition(" ") if isinstance(said, str) else ("", "", "")
        if speaker not in _SPEAKERS:
            raise ValueError(f"an entry of history must begin with {' or '.join(_SPEAKERS)} and a space")
        messages.append(Message(_SPEAKERS[speaker], text))
    return messages


def _text(content: dict[str, Any], key: str) -> str:
    if not isinstance(content.get(key), str):
        raise ValueError(f"{key} is no text")
    return str(content[key])
