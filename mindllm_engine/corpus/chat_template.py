"""Chats as token ids: a template says what stands before and after what each role says, and what of it is learnt.

Each part of a template, and each message, is encoded by itself, so that the ids of a prompt are a prefix of those of
the prompt with its answer: the network meets at inference what it was tuned on.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import orjson

from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError, DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

# In the folder of a tuned run, beside its tokenizer.
TEMPLATE_FILE = "chat_template.json"

_CONTENT = "{content}"
_BOS, _EOS = "<s>", "</s>"
_SYMBOLS = re.compile("(" + "|".join(re.escape(token) for token in (*CHAT_TOKENS, _BOS, _EOS)) + ")")


@dataclass(frozen=True)
class Message:
    """What one role says."""

    role: Role
    content: str


@dataclass(frozen=True, eq=False)
class Rendered:
    """A chat as ids.

    Attributes:
        ids: int32[tokens].
        supervised: bool[tokens], which of them are predicted: answers and what ends them.
    """

    ids: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.bool_]


@dataclass
class TemplateConfig:
    """What stands around the messages of a chat. `{content}` is the message; `<|system|>`, `<|user|>`, `<|assistant|>`,
    `<|end|>`, `<s>` and `</s>` are the tokenizer's symbols; all else is text. `<s>` begins every chat and `</s>` ends
    it, whether or not the template says so."""

    system: str = "<|system|>{content}<|end|>"
    """Around the system's message."""
    user: str = "<|user|>{content}<|end|>"
    """Around a user's message."""
    assistant: str = "<|assistant|>{content}<|end|>"
    """Around an answer. It and all that follows it here are learnt."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first part that cannot be used."""
        for role in ROLES:
            if getattr(self, role).count(_CONTENT) != 1:
                raise ConfigError(f"template.{role}: {getattr(self, role)!r} must hold {_CONTENT} exactly once")
        if self.system.count(_EOS) + self.user.count(_EOS):
            raise ConfigError(
                f"template: {_EOS} stands around a question, where it is not learnt, so that answers would never end; "
                "leave it to the assistant's part"
            )


class ChatTemplate:
    """A template for one tokenizer.

    Args:
        config: the parts.
        tokenizer: must have the symbols that the parts name.

    Attributes:
        stop_ids: what ends an answer in generation: `</s>`, and the symbol that follows an answer, if one does.

    Raises:
        ConfigError: a part that cannot be used, or names a symbol that the tokenizer has not.
    """

    def __init__(self, config: TemplateConfig, tokenizer: TextTokenizer) -> None:
        config.validate()
        self.config = config
        self.tokenizer = tokenizer
        self._before: dict[Role, list[int]] = {}
        self._after: dict[Role, list[int]] = {}
        for role in ROLES:
            before, after = getattr(config, role).split(_CONTENT)
            self._before[role], self._after[role] = self._encode_part(before, role), self._encode_part(after, role)
        self.stop_ids = {tokenizer.eos_id}
        if _SYMBOLS.match(config.assistant.split(_CONTENT)[1]):
            self.stop_ids.add(self._after["assistant"][0])

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A whole chat, from `<s>` to `</s>`.

        Raises:
            DataError: no message is the assistant's, or a text cannot be encoded.
        """
        if not any(message.role == "assistant" for message in messages):
            raise DataError("a chat without an answer has nothing to learn from")
        ids, supervised = [self.tokenizer.bos_id], [False]
        for message in messages:
            before = self._before[message.role]
            rest = self.tokenizer.encode(message.content) + self._after[message.role]
            ids += before + rest
            supervised += [False] * len(before) + [message.role == "assistant"] * len(rest)
        if ids[-1] != self.tokenizer.eos_id:
            ids.append(self.tokenizer.eos_id)
            supervised.append(messages[-1].role == "assistant")
        if not supervised[-1]:
            raise DataError("a chat must end with an answer, or its end is not learnt")
        return Rendered(np.array(ids, np.int32), np.array(supervised, np.bool_))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat so far, after which the assistant's answer comes."""
        ids = [self.tokenizer.bos_id]
        for message in messages:
            ids += self._before[message.role] + self.tokenizer.encode(message.content) + self._after[message.role]
        return ids + self._before["assistant"]

    def spelled_prompt(self, messages: Sequence[Message]) -> str:
        """`prompt` for reading, symbols spelled out. It cannot be encoded again: a message may spell a symbol too."""
        parts = [_BOS]
        for message in messages:
            before, after = getattr(self.config, message.role).split(_CONTENT)
            parts += [before, message.content, after]
        return "".join([*parts, self.config.assistant.split(_CONTENT)[0]])

    def save(self, folder: Path) -> None:
        """Write the template beside the tokenizer of a run. Raises OSError."""
        write_atomically(folder / TEMPLATE_FILE, orjson.dumps(asdict(self.config), option=orjson.OPT_INDENT_2))

    def _encode_part(self, part: str, role: Role) -> list[int]:
        ids: list[int] = []
        for piece in filter(None, _SYMBOLS.split(part)):
            if piece in (_BOS, _EOS):
                ids.append(self.tokenizer.bos_id if piece == _BOS else self.tokenizer.eos_id)
            elif _SYMBOLS.fullmatch(piece):
                try:
                    ids.append(self.tokenizer.special_id(piece))
                except DataError as error:
                    raise ConfigError(f"template.{role}: {error}, or write the template without it") from error
            else:
                ids += self.tokenizer.encode(piece)
        return ids


def load_template(folder: Path, tokenizer: TextTokenizer) -> ChatTemplate:
    """The template of a tuned run.

    Raises:
        DataError: the folder has none (it is of a pre-trained network), or it is damaged.
        ConfigError: as of `ChatTemplate`.
    """
    path = folder / TEMPLATE_FILE
    try:
        parts = orjson.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: no chat template ({error.strerror}); tune the network with tools/tune.py") from error
    except ValueError as error:
        raise DataError(f"{path}: damaged chat template: {error}; put the one of the run there") from error
    # A part that is missing must not become the default one, on which the network was not tuned.
    whole = isinstance(parts, dict) and parts.keys() == set(ROLES)
    if not whole or not all(isinstance(part, str) for part in parts.values()):
        raise DataError(
            f"{path}: damaged chat template: expected the texts {', '.join(ROLES)} and no others; put the one of the "
            "run there"
        )
    try:
        return ChatTemplate(TemplateConfig(**parts), tokenizer)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
