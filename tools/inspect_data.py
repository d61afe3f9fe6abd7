"""Look at a run's data: `python tools/inspect_data.py --config configs/demo.yaml [--samples 0,17,4000] [--out DIR]`.

Reads the config of the run (several `--config` files complete each other) and the token files, which must exist; no
text is tokenised, and no network is built. Prints statistics of the sources and some samples as training reads them,
and draws the share of each source over the course of the plan.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.data.inspection import describe, inspect
from mindllm_engine.data.inspection_text import print_inspection
from mindllm_engine.data.loader import Loader
from mindllm_engine.data.plan_picture import draw
from mindllm_engine.data.plan_summary import summarize
from mindllm_engine.errors import ConfigError
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.setup import make_plan, open_prepared, tokenizer_of

PICTURE = "mixture.png"
SAMPLES_SHOWN = 4


@dataclass
class InspectArguments(RunConfig):
    """A run's configuration, what to look at, and where the picture and the numbers go."""

    samples: str | None = None
    """Numbers of global samples to print, such as 0,17,1000000; empty for some from the first to the last."""
    out: str | None = None
    """Folder for the picture, mixture.png; the run folder by default."""
    json: str | None = None
    """File to write all numbers to: statistics, shares, and the samples with their whole text."""


def main() -> None:
    """Print the statistics and the samples, and draw the plan."""
    description = "Look at a run's data: statistics of its sources, some samples, and its mixture over time."
    config = parse_arguments(InspectArguments, description)
    sources = open_prepared(config)
    files = list(sources.values())
    tokenizer = tokenizer_of(config)
    decode = tokenizer.decode if tokenizer else None
    vocab_size = config.model.selected.vocab_size
    for file in files:
        file.check(tokenizer.hash if tokenizer else files[0].manifest.tokenizer_hash, vocab_size)
    plan = make_plan(config, sources)
    numbers = sample_numbers(config.samples, plan.samples)
    loader = Loader(plan, files, vocab_size, rank=0, world_size=1, verify=config.data.verify)
    inspection = inspect(loader, files, numbers)
    picture = Path(config.out or config.run.dir) / PICTURE
    draw(plan, inspection.course, picture)
    if config.json is not None:
        summary = asdict(summarize(plan, config.data.blocks))
        write_json(Path(config.json), {"plan": summary} | describe(inspection, decode))
    console = Console(width=160 if not Console().is_terminal else None, highlight=False)
    print_inspection(console, inspection, decode)
    console.print(f"plan {plan.hash}: {plan.samples:,} samples, packing {plan.packing}, seed {plan.seed}")
    console.print(f"picture of the mixture: {picture}", markup=False, soft_wrap=True)


def sample_numbers(asked: str | None, samples: int) -> list[int]:
    """The samples to show of a plan that has `samples`. Raises ConfigError for one that it has not."""
    if asked is None:
        return sorted({(samples - 1) * place // (SAMPLES_SHOWN - 1) for place in range(SAMPLES_SHOWN)})
    if not re.fullmatch(r"\s*[0-9]{1,99}\s*(,\s*[0-9]{1,99}\s*)*", asked):
        raise ConfigError(f"samples: '{asked}' is no list of sample numbers; give one such as 0,17,1000000")
    numbers = [int(number) for number in asked.split(",")]
    if max(numbers) >= samples:
        raise ConfigError(f"samples: the plan has no sample {max(numbers)}; its {samples:,} are 0 to {samples - 1}")
    return numbers


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write the numbers. Raises ConfigError where that is impossible."""
    try:
        path.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
    except OSError as error:
        raise ConfigError(f"json: cannot write to {path} ({error.strerror}); choose another file") from error


if __name__ == "__main__":
    run_tool(main)
