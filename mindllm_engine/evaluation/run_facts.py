"""What a run folder tells about the run, read for the report: nothing is computed again that the folder holds."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.chat_template import TEMPLATE_FILE, Message, load_template
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.errors import DataError, MindLLMError
from mindllm_engine.evaluation.generation import generate
from mindllm_engine.evaluation.heldout_table import ReportRow, make_rows
from mindllm_engine.evaluation.report_scores import read_evaluations
from mindllm_engine.models import Network
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.environment import Environment, read_environments
from mindllm_engine.training.metrics import read_metrics
from mindllm_engine.training.setup import CONFIG_FILE, open_data
from mindllm_engine.training.weights import TOKENIZER_FILE, best_device, find_checkpoint, load_model, tokenizer_of

NEW_TOKENS = 60
TEMPERATURE = 0.7
TOP_P = 0.9

# Beside config.yaml in the folders of tuned runs.
TUNING_FILE = "tuning.yaml"


@dataclass(frozen=True)
class Speed:
    """Medians over a run's records, the first left out: it holds what happens once. None where there are no others.

    Attributes:
        mfu: share of the hardware's FLOP/s; None where they are not known.
        memory: GiB at the peak, of the first rank.
    """

    tokens_per_second: float | None
    mfu: float | None
    memory: float | None


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        name: for plots and tables.
        configs: file name -> text of config.yaml and, of a tuned run, tuning.yaml.
        records: of metrics.jsonl.
        rows: the table of held-out losses; empty where the run has none.
        note: why the table is empty or lacks the baselines; "" where nothing is missing.
        continuations: what the newest weights say after each prompt.
        evaluations: folder -> what tools/evaluate.py left there.
    """

    name: str
    folder: str
    network: str
    parameters: int
    steps: int
    tokens: int
    environments: list[Environment]
    speed: Speed
    configs: dict[str, str]
    records: list[dict[str, Any]]
    sources: list[str]
    rows: list[ReportRow]
    note: str
    continuations: dict[str, str]
    evaluations: dict[str, dict[str, Any]]


def read_run(folder: Path, name: str, prompts: list[str]) -> RunFacts:
    """Read a run folder, score the baselines on its data where that is at hand, and let the network continue prompts.

    Raises:
        DataError: the folder holds no run with records.
    """
    records = read_metrics(folder)
    if not (folder / CONFIG_FILE).exists() or not records:
        raise DataError(
            f"{folder}: holds no run with records; train it first with tools/pretrain.py --run.dir {folder}"
        )
    config = parse_arguments(RunConfig, "", ["--config", str(folder / CONFIG_FILE)])
    model, _ = load_model(folder, best_device())
    rows, note = heldout_rows(config, records)
    files = [folder / name for name in (CONFIG_FILE, TUNING_FILE)]
    return RunFacts(
        name=name,
        folder=str(folder),
        network=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=records[-1]["step"],
        tokens=records[-1]["tokens"],
        environments=read_environments(folder),
        speed=speed_of(records),
        configs={file.name: file.read_text(encoding="utf-8") for file in files if file.exists()},
        records=records,
        sources=sources_of(records),
        rows=rows,
        note=note,
        continuations=continue_prompts(folder, model, prompts, config.run.seed),
        evaluations=read_evaluations(folder),
    )


def heldout_rows(config: RunConfig, records: list[dict[str, Any]]) -> tuple[list[ReportRow], str]:
    """The table of held-out losses, and why there is none."""
    evaluated = [record for record in records if "heldout_bpb" in record]
    if not evaluated and any("heldout_loss" in record for record in records):
        return [], "The run's losses are not of tokens, so that there are no bits per byte; the first picture has them."
    if not evaluated:
        return [], "The run has no held-out data: name some under data.heldout or corpus.holdout."
    try:
        data = open_data(config)
    except MindLLMError as error:
        return [], f"The baselines need the run's data, which is not at hand: {error}"
    return make_rows(data, config.model.selected.vocab_size, evaluated[0], evaluated[-1]), ""


def sources_of(records: list[dict[str, Any]]) -> list[str]:
    """The names of sources in a run's records, in the order in which they come up."""
    prefixes = ("heldout_bpb/", "heldout_loss/", "loss/")
    names = (key.split("/", 1)[1] for record in records for key in record if key.startswith(prefixes))
    return list(dict.fromkeys(names))


def speed_of(records: list[dict[str, Any]]) -> Speed:
    """The medians."""
    steps = [record for record in records if record.get("tokens_per_second")][1:]

    def median(key: str) -> float | None:
        values = [record[key] for record in steps if record.get(key) is not None]
        return statistics.median(values) if values else None

    return Speed(median("tokens_per_second"), median("mfu"), max((r.get("memory") or 0 for r in steps), default=None))


def continue_prompts(folder: Path, model: Network, prompts: list[str], seed: int) -> dict[str, str]:
    """What the network says after each prompt, or, once tuned, answers to it. Nothing without a tokenizer."""
    if not (folder / TOKENIZER_FILE).exists():
        return {}
    tokenizer = tokenizer_of(find_checkpoint(folder))
    return {prompt: tokenizer.decode(continuation(folder, model, tokenizer, prompt, seed)) for prompt in prompts}


def continuation(folder: Path, model: Network, tokenizer: TextTokenizer, prompt: str, seed: int) -> list[int]:
    """The ids after a prompt, without the one that ends them."""
    ids, stop_ids = [tokenizer.bos_id, *tokenizer.encode(prompt)], {tokenizer.eos_id}
    if (folder / TEMPLATE_FILE).exists():
        template = load_template(folder, tokenizer)
        ids, stop_ids = template.prompt([Message("user", prompt)]), template.stop_ids
    new: list[int] = []
    for token in generate(model, ids, NEW_TOKENS, TEMPERATURE, TOP_P, seed=seed, vocab_size=tokenizer.vocab_size):
        if token in stop_ids:
            break
        new.append(token)
    return new
