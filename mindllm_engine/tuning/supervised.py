"""Chats as documents to learn from: rendered by the template, the answers learnt, cut or dropped where too long."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mindllm_engine.corpus.chat_template import ChatTemplate, Message, Rendered
from mindllm_engine.data.loss_mask import SUPERVISED
from mindllm_engine.errors import DataError
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.records import BadRecord, Record, read_records
from mindllm_engine.tuning.token_documents import Document, PreparedRecords, TooLong, prepare_documents

CATEGORY = "instruction"


def prepare_records(name: str, config: TuneConfig, template: ChatTemplate) -> PreparedRecords:
    """The token files of one source of chats. Raises DataError as `prepare_documents` does."""
    limit = longest_record(config)
    settings = {"template": asdict(template.config), "limit": limit, "long_records": config.tuning.long_records}

    def documents(path: Path) -> Iterator[Document | BadRecord | TooLong]:
        for record in read_records(path):
            yield record if isinstance(record, BadRecord) else document_of(record, template, limit, settings)

    return prepare_documents(name, config, template.tokenizer, CATEGORY, settings, documents)


def longest_record(config: TuneConfig) -> int:
    """Tokens that a record may have to lie whole in a sample of any block: inputs, and the last target."""
    return min(block.seq_len or config.data.seq_len for block in config.data.blocks) + 1


def document_of(
    record: Record, template: ChatTemplate, limit: int, settings: dict[str, Any]
) -> Document | BadRecord | TooLong:
    """A record of at most `limit` tokens, cut if `settings` say so, or why it is none."""
    reason = f"longer than {limit} tokens"
    cut = ""
    try:
        messages, rendered = record.messages, template.render(record.messages)
        if len(rendered.ids) > limit:
            shortened = shorten_question(messages, template, limit) if settings["long_records"] == "cut" else None
            if shortened is None:
                return TooLong(record.where, reason)
            messages, rendered = shortened
            cut = f"{reason}: the end of the longest question is left out"
    except DataError as error:
        return BadRecord(record.where, str(error))
    return Document(
        where=record.where,
        key=orjson.dumps([(message.role, message.content) for message in record.messages]),
        ids=rendered.ids,
        mask=np.where(rendered.supervised, SUPERVISED, 0).astype(np.uint8),
        learnt_bytes=sum(len(message.content.encode()) for message in messages if message.role == "assistant"),
        cut=cut,
    )


def shorten_question(
    messages: Sequence[Message], template: ChatTemplate, limit: int
) -> tuple[tuple[Message, ...], Rendered] | None:
    """The chat in at most `limit` tokens, with as much of the beginning of its longest question as there is room for;
    None if even without that question it is longer."""
    place = max(
        (place for place, message in enumerate(messages) if message.role != "assistant"),
        key=lambda place: len(messages[place].content),
    )

    def keeping(characters: int) -> tuple[tuple[Message, ...], Rendered]:
        question = replace(messages[place], content=messages[place].content[:characters])
        chat = (*messages[:place], question, *messages[place + 1 :])
        return chat, template.render(chat)

    # The most characters that fit, by bisection; tokens grow with characters but for a merge at the cut, and what is
    # kept at the end was seen to fit.
    fitting, too_many = 0, len(messages[place].content)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if len(keeping(middle)[1].ids) <= limit:
            fitting = middle
        else:
            too_many = middle
    return keeping(fitting) if fitting else None
