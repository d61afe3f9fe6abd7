"""Look at what a tuning learns: `python tools/inspect_tuning_data.py --config configs/tuning/alpaca_small.yaml`.

Prints samples as training reads them, every token in the colour of its weight in the loss, and writes them to a page by
`--html FILE`. The token files are made where they are absent. Or of one token file: `--prefix data/tuning/NAME/train
--tokenizer runs/base/tokenizer.model --seq_len 1024`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, open_tokenizer
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.data.loader import Loader
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts
from mindllm_engine.data.stream import packed_windows
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import ConfigError
from mindllm_engine.training.setup import make_plan
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.inspection import LEGEND, look_at_tuning, print_tuning_sample
from mindllm_engine.tuning.tune import prepare

DESCRIPTION = "Show what a tuning learns: the tokens of its samples, coloured by their weight in the loss."


@dataclass(kw_only=True)
class InspectTuning(TuneConfig):
    """A tuning's configuration, and what to look at."""

    samples: str | None = None
    """Numbers of global samples to print, such as 0,17,4000; empty for the first three."""
    html: str | None = None
    """File to write them to as a page, too."""


@dataclass
class InspectPrefix:
    """One token file, and what to look at."""

    prefix: str
    """Of the token file; its samples come in the order of a run with seed 1."""
    seq_len: int = 1024
    """Tokens in a sample."""
    tokenizer: str | None = None
    """The tokenizer it was made with; empty to print ids."""
    samples: str | None = None
    """Numbers of samples to print, such as 0,17,4000; empty for the first three."""
    html: str | None = None
    """File to write them to as a page, too."""


def main() -> None:
    """Print the samples asked for."""
    arguments: InspectTuning | InspectPrefix
    if any(argument.split("=")[0] == "--prefix" for argument in sys.argv[1:]):
        arguments = parse_arguments(InspectPrefix, DESCRIPTION)
        loader, tokenizer = open_prefix(arguments)
    else:
        arguments = parse_arguments(InspectTuning, DESCRIPTION)
        loader, tokenizer = open_tuning(arguments)
    console = Console(width=160 if not Console().is_terminal else None, highlight=False, record=True)
    console.print(LEGEND)
    for number in numbers(arguments.samples, loader.plan.samples):
        print_tuning_sample(console, look_at_tuning(loader, number), tokenizer)
    if arguments.html is not None:
        page = console.export_html(theme=DEFAULT_TERMINAL_THEME, inline_styles=True)
        write_atomically(Path(arguments.html), page.encode())


def open_tuning(config: InspectTuning) -> tuple[Loader, TextTokenizer]:
    """The samples of a tuning, whose token files are made where they are absent."""
    prepared = prepare(config)
    files = {name: TokenFile(prefix) for name, prefix in prepared.run.data.sources.items()}
    plan = make_plan(prepared.run, dict(files))
    vocab_size = prepared.run.model.selected.vocab_size
    return Loader(plan, list(files.values()), vocab_size, 0, 1), prepared.template.tokenizer


def open_prefix(arguments: InspectPrefix) -> tuple[Loader, TextTokenizer | None]:
    """The samples of one epoch of a token file, packed as tuning packs them."""
    file = TokenFile(arguments.prefix)
    tokenizer = open_tokenizer(arguments.tokenizer) if arguments.tokenizer is not None else None
    file.check(tokenizer.hash if tokenizer is not None else None)
    seq_len = arguments.seq_len
    if seq_len < 1:
        raise ConfigError(f"seq_len: {seq_len} must be at least 1")
    samples = packed_windows(file, seq_len).samples
    facts = SourceFacts.of(file.manifest.name, file.manifest, {seq_len: samples})
    plan = Plan([facts], [BlockConfig()], seq_len, 1, samples, "best_fit")
    return Loader(plan, [file], file.manifest.vocab_size, 0, 1), tokenizer


def numbers(asked: str | None, samples: int) -> list[int]:
    """The samples to show of a plan that has `samples`. Raises ConfigError for one that it has not."""
    if asked is None:
        return list(range(min(3, samples)))
    parts = [part.strip() for part in asked.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"samples: '{asked}' is no list of sample numbers; give one such as 0,17,4000")
    if max(map(int, parts)) >= samples:
        raise ConfigError(f"samples: there is no sample {max(map(int, parts))}; the {samples:,} are 0 to {samples - 1}")
    return [int(part) for part in parts]


if __name__ == "__main__":
    run_tool(main)
