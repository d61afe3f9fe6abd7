"""Reads pairs of answers, one of which is preferred, and lays each out as one document: the chosen chat, then the
rejected one, which a border inside the document keeps apart (data/loss_mask.py). So a pair never leaves its sample.

    {"prompt": ..., "chosen": ..., "rejected": ...}        `instruction` and `input` may stand for `prompt`
    {"messages": [... the user's], "chosen": ..., "rejected": ...}

An answer is a text, or a message or list of one message of the assistant's. Only it is learnt, not earlier answers.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mindllm_engine.corpus.chat_template import ChatTemplate, Message
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.data.loss_mask import NEW_SEQUENCE, SUPERVISED
from mindllm_engine.errors import DataError
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.records import ASSISTANT_NAMES, BadRecord, chat_of, is_blank, messages_of
from mindllm_engine.tuning.supervised import longest_record
from mindllm_engine.tuning.token_documents import Document, PreparedRecords, TooLong, prepare_documents

CATEGORY = "preference"


@dataclass(frozen=True)
class Pair:
    """Two answers to one chat.

    Attributes:
        where: file and line.
        prompt: the chat up to the answers, the user's message last.
    """

    where: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def read_pairs(path: str | Path) -> Iterator[Pair | BadRecord]:
    """The pairs of a file in their order.

    Raises:
        DataError: the file is missing or damaged. A bad line is no error here: it comes as `BadRecord`.
    """
    for where, content in read_json_lines(path):
        try:
            yield pair_of(where, content)
        except ValueError as error:
            yield BadRecord(where, str(error))


def pair_of(where: str, content: Any) -> Pair:
    """The pair in a record's JSON. Raises ValueError with the reason where there is nothing to learn from."""
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    answers = []
    for key in ("chosen", "rejected"):
        if key not in content:
            raise ValueError(f"no {key}")
        answer = content[key]
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if isinstance(answer, dict):
            if answer.get("role", answer.get("from", "assistant")) not in ASSISTANT_NAMES:
                raise ValueError(f"the {key} message is not the assistant's")
            answer = answer.get("content", answer.get("value"))
        if not isinstance(answer, str):
            raise ValueError(f"{key} is neither a text nor one message")
        if is_blank(answer):
            raise ValueError(f"empty {key} answer" if not answer else f"{key} answer of only whitespace")
        answers.append(answer)
    if answers[0] == answers[1]:
        raise ValueError("the chosen and the rejected answer are the same")
    return Pair(where, prompt_of(content), answers[0], answers[1])


def prompt_of(content: dict[str, Any]) -> tuple[Message, ...]:
    """The chat that the answers belong to, by the rules of instruction records. Raises ValueError."""
    if (chat := chat_of(content)) is not None:
        if isinstance(chat, list):
            chat = [*chat, {"role": "assistant", "content": "answer"}]
        messages = messages_of({"messages": chat})
    elif "prompt" in content:
        messages = messages_of({"instruction": content["prompt"], "output": "answer"})
    else:
        asked = {key: content[key] for key in ("instruction", "input") if key in content}
        if not asked:
            raise ValueError("no prompt, instruction or messages")
        messages = messages_of({**asked, "output": "answer"})
    if len(messages) < 2 or messages[-2].role != "user":
        raise ValueError("the last message of the prompt is not the user's")
    return messages[:-1]


def prepare_pairs(name: str, config: TuneConfig, template: ChatTemplate) -> PreparedRecords:
    """The token files of one source of pairs. Raises DataError as `prepare_documents` does."""
    limit = longest_record(config)
    settings = {"template": asdict(template.config), "limit": limit}

    def documents(path: Path) -> Iterator[Document | BadRecord | TooLong]:
        for pair in read_pairs(path):
            yield pair if isinstance(pair, BadRecord) else document_of(pair, template, limit)

    return prepare_documents(name, config, template.tokenizer, CATEGORY, settings, documents)


def document_of(pair: Pair, template: ChatTemplate, limit: int) -> Document | BadRecord | TooLong:
    """A pair of at most `limit` tokens, both prompts and answers, or why it is none."""
    try:
        chosen, rejected = (render(pair.prompt, answer, template) for answer in (pair.chosen, pair.rejected))
    except DataError as error:
        return BadRecord(pair.where, str(error))
    ids = np.concatenate((chosen[0], rejected[0]))
    mask = np.concatenate((chosen[1], rejected[1]))
    mask[len(chosen[0])] |= NEW_SEQUENCE
    if len(ids) > limit:
        return TooLong(pair.where, f"a pair longer than {limit} tokens")
    prompt = [(message.role, message.content) for message in pair.prompt]
    return Document(
        where=pair.where,
        key=orjson.dumps(prompt),  # answers to one prompt fall on the same side
        ids=ids,
        mask=mask,
        learnt_bytes=len(pair.chosen.encode()) + len(pair.rejected.encode()),
    )


def render(
    prompt: tuple[Message, ...], answer: str, template: ChatTemplate
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The ids and the mask of a chat, of which the last answer and what ends it are learnt."""
    rendered = template.render((*prompt, Message("assistant", answer)))
    learnt = rendered.supervised.copy()
    learnt[: len(template.prompt(prompt))] = False
    return rendered.ids, np.where(learnt, SUPERVISED, 0).astype(np.uint8)
