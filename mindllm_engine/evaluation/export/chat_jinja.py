"""A run's chat template as the Jinja template that Transformers renders, for a tokenizer.json that takes SPLIT and JOIN
away (tokenizer_json.py).

`ChatTemplate` encodes each part and each message by itself and reads no symbol from a message. Transformers renders one
text and encodes that, so SPLIT stands around what is text, and JOIN within what looks like a symbol in a message.
"""

import json
import re

from mindllm_engine.corpus.chat_template import ROLES, ChatTemplate
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS
from mindllm_engine.evaluation.export.tokenizer_json import JOIN, SPLIT

_SYMBOLS = re.compile("(" + "|".join(map(re.escape, (*CHAT_TOKENS, "<s>", "</s>"))) + ")")


def chat_jinja(template: ChatTemplate, special: dict[str, int]) -> str:
    """The text of chat_template.jinja.

    Args:
        special: the control symbols of the tokenizer.json, with their ids.
    """
    name_of = {id: token for token, id in special.items()}
    begin, end = (name_of[id] for id in (template.tokenizer.bos_id, template.tokenizer.eos_id))
    names = {"<s>": begin, "</s>": end}

    def part(text: str) -> str:
        """A part of the template as a literal."""
        pieces = filter(None, _SYMBOLS.split(text))
        marked = (
            names.get(piece, piece) if _SYMBOLS.fullmatch(piece) else _without_symbols(piece, special)
            for piece in pieces
        )
        return _literal(SPLIT.join(["", *marked, ""]))

    content = "message['content']" + "".join(
        f" | replace({_literal(token)}, {_literal(_without_symbols(token, special))})"
        for token in _longest_first(special)
    )
    before, after = {}, {}
    for role in ROLES:
        left, right = getattr(template.config, role).split("{content}")
        before[role], after[role] = part(left), part(right)
    lines = [f"{{{{- {_literal(begin)} -}}}}", "{%- for message in messages -%}"]
    for number, role in enumerate(ROLES):
        lines.append(f"{{%- {'elif' if number else 'if'} message['role'] == '{role}' -%}}")
        lines.append(f"{{{{- {before[role]} -}}}}{{{{- {content} -}}}}{{{{- {after[role]} -}}}}")
    lines.append("{%- else -%}{{- raise_exception('a message is of the system, the user or the assistant') -}}")
    lines += ["{%- endif -%}", "{%- endfor -%}"]
    lines.append(f"{{%- if add_generation_prompt -%}}{{{{- {before['assistant']} -}}}}")
    if not template.config.assistant.endswith("</s>"):
        lines.append(f"{{%- else -%}}{{{{- {_literal(end)} -}}}}")
    lines.append("{%- endif -%}")
    return "\n".join(lines) + "\n"


def _longest_first(special: dict[str, int]) -> list[str]:
    return sorted(special, key=lambda token: (-len(token), token))


def _without_symbols(text: str, special: dict[str, int]) -> str:
    """The text with JOIN after the first character of whatever would be read as a symbol."""
    for token in _longest_first(special):
        text = text.replace(token, token[0] + JOIN + token[1:])
    return text


def _literal(text: str) -> str:
    """A string of Jinja, which reads JSON's escapes; the marks are escaped, all else stands as it is."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(f"\\u{ord(letter):04x}" if letter in SPLIT + JOIN else letter for letter in quoted)
