"""Prepare the corpus of a run before it starts: `python tools/prepare_corpus.py --config configs/demo.yaml`.

Training does the same by itself; beforehand it needs no GPU. Only the config's `corpus` section is read.
"""

import json
import sys
from dataclasses import dataclass

from mindllm_engine.command_line import parse_arguments, read_yaml, run_tool
from mindllm_engine.corpus.prepare import CorpusConfig, prepare_corpus
from mindllm_engine.errors import ConfigError


@dataclass
class PrepareArguments:
    """The corpus section of a run's config."""

    corpus: CorpusConfig
    """Text, and how it becomes token files."""


def main() -> None:
    """Prepare the corpus and print where it lies."""
    description = "Train the tokenizer and tokenize the sources of a run's config; other sections of it are ignored."
    prepared = prepare_corpus(parse_arguments(PrepareArguments, description, _corpus_section(sys.argv[1:])).corpus)
    print(f"tokenizer: {prepared.tokenizer}")
    for name, prefix in prepared.sources.items():
        print(f"{name}: {prefix}" + (f", held out: {prepared.heldout[name]}" if name in prepared.heldout else ""))


def _corpus_section(argv: list[str]) -> list[str]:
    """The arguments with `--config FILE` replaced by the corpus section of that file."""
    replaced: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument != "--config" and not argument.startswith("--config="):
            replaced.append(argument)
            continue
        path = argument.removeprefix("--config=") if "=" in argument else next(rest, "")
        section = read_yaml(path).get("corpus")
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: has no section `corpus`")
        replaced.append(f"--corpus={json.dumps(section)}")
    return replaced


if __name__ == "__main__":
    run_tool(main)
