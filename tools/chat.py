"""Talk to a tuned network: `python tools/chat.py --run runs/alpaca_small [--prompt "什么是三原色？"]`.

Without a prompt it reads what you say line by line; an empty line begins anew, the end of the input (Ctrl-D) ends.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.corpus.chat_template import ChatTemplate, Message, load_template
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.generation import TextStream, generate
from mindllm_engine.models import Network
from mindllm_engine.training.weights import load_model_for_inference


@dataclass
class ChatArguments:
    """Answer one prompt, or talk."""

    run: str
    """The run folder of a tuned network."""
    prompt: str | None = None
    """What to ask; only its answer is printed. Empty to talk line by line."""
    system: str | None = None
    """What the system says first."""
    max_new_tokens: int = 300
    """Stop an answer after so many tokens, if it has not ended."""
    temperature: float = 0.7
    """Divides the logits; 0 takes the likeliest token each time."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that reach this probability together."""
    seed: int = 0
    """The same seed and words give the same answers."""


def main() -> None:
    """Load a tuned run and answer."""
    arguments = parse_arguments(ChatArguments, "Talk to the newest network of a tuned run.")
    model, tokenizer = load_model_for_inference(arguments.run)
    template = load_template(Path(arguments.run), tokenizer)
    beginning = [Message("system", arguments.system)] if arguments.system is not None else []
    if arguments.prompt is not None:
        speak(answer(model, template, [*beginning, Message("user", arguments.prompt)], arguments))
        return
    chat = list(beginning)
    for line in lines():
        if not line.strip():
            chat = list(beginning)
            continue
        chat.append(Message("user", line))
        try:
            chat.append(Message("assistant", speak(answer(model, template, chat, arguments))))
        except (ConfigError, DataError) as error:  # too long for the network, or no Unicode
            print(f"{error}; we begin anew", file=sys.stderr, flush=True)
            chat = list(beginning)


def answer(model: Network, template: ChatTemplate, chat: list[Message], arguments: ChatArguments) -> Iterator[str]:
    """The answer to a chat, piece by piece as it comes. Raises ConfigError for one too long for the network."""
    stream = TextStream(template.tokenizer.decode)
    for token in generate(
        model,
        template.prompt(chat),
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        vocab_size=template.tokenizer.vocab_size,
    ):
        if token in template.stop_ids:
            break
        yield stream.add(token)
    yield stream.finish()


def speak(pieces: Iterator[str]) -> str:
    """Print an answer while it comes; returns all of it."""
    said = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        said += piece
    print()
    return said


def lines() -> Iterator[str]:
    """What the person says, a line at a time."""
    sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused where it is encoded
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


if __name__ == "__main__":
    run_tool(main)
