"""For tests of studies that fit laws: the config of runs that take a second, and results with planted losses."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from mindllm_engine.command_line import parse_mapping
from mindllm_engine.studies.results import LeftOut, Result, Results
from mindllm_engine.training.config import RunConfig

SEQ_LEN = 32


def runs(folder: Path) -> dict[str, Any]:
    """A GPT-Neo of a few thousand parameters on the words that `write_runs` writes."""
    return {
        "run": {"dir": "unused"},
        "corpus": {
            "dir": str(folder / "data"),
            "tokenizer_vocab_size": 300,
            "tokenizer_train_bytes": 20000,
            "holdout": 0.1,
            "sources": {"en_words": {"path": str(folder / "en_words.jsonl"), "lang": "en", "category": "words"}},
        },
        "model": {
            "gpt_neo": {
                "vocab_size": 300,
                "hidden_size": 16,
                "ffn_size": 32,
                "n_layers": 1,
                "n_heads": 2,
                "max_seq_len": SEQ_LEN,
                "window_size": 16,
            }
        },
        "data": {"seq_len": SEQ_LEN, "blocks": [{"max_epochs": 50}]},
        "optim": {"schedule": {"kind": "linear", "warmup_steps": 2}},
        "train": {
            "steps": 5,
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "precision": "fp32",
            "eval_tokens": 512,
            "log_every": 2,
            "tensorboard": False,
        },
    }


def write_runs(folder: Path) -> Path:
    """The config as a file, beside its text: words drawn at random, each often followed by the same."""
    random = np.random.default_rng(0)
    words = np.array(["red", "green", "blue", "grey", "black", "white", "pink", "brown"])
    texts = []
    for _ in range(400):
        steps = np.where(random.random(40) < 0.7, 1, random.integers(0, 8, 40))
        texts.append(" ".join(words[steps.cumsum() % 8]))
    (folder / "en_words.jsonl").write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    path = folder / "runs.yaml"
    path.write_text(yaml.safe_dump(runs(folder), sort_keys=False))
    return path


def planted(
    settings: Mapping[str, Any],
    parameters: int,
    points: list[tuple[float, float]],
    tokenizer: str = "t",
    embedding: int = 0,
) -> Result:
    """A finished run whose held-out loss was (tokens, loss), ..., as bits per byte a quarter of that. `embedding`
    of its parameters are the embedding's."""
    records = [
        {"step": step, "tokens": tokens, "loss": loss, "heldout_loss": loss, "heldout_bpb": loss / 4}
        for step, (tokens, loss) in enumerate(points)
    ]
    name = "_".join(f"{key}{value}" for key, value in settings.items())
    text = {"tokenizer": tokenizer, "en_words": "w"}
    return Result(
        name, settings, Path("nowhere") / name, _config(), parameters, parameters - embedding, records, text, 1.0
    )


@functools.cache
def _config() -> RunConfig:
    return parse_mapping(RunConfig, runs(Path("nowhere")), "planted")


def results_of(*finished: Result, left_out: tuple[LeftOut, ...] = ()) -> Results:
    """Of a study."""
    return Results(finished, left_out)
