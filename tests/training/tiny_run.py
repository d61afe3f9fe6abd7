"""A run small enough for tests: two sources of patterned tokens, a MindLLM of two layers, and ways to start it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ROOT / "tools" / "pretrain.py"
VOCAB = 97


def write_tokens(prefix: Path, lang: str, documents: int, seed: int, tokenizer_hash: str = "a" * 16) -> None:
    """Documents in which each token mostly follows from the one before it, so that a network has something to learn."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 60, documents)
    tokens = []
    for length in lengths:
        noise = rng.integers(0, 3, length)
        document = (np.cumsum(noise + 5) + seed) % (VOCAB - 2) + 2
        document[0], document[-1] = 1, 0
        tokens.append(document)
    with TokenFileBuilder(
        prefix, "uint16", name=prefix.name, lang=lang, category="web", tokenizer_hash=tokenizer_hash, vocab_size=VOCAB
    ) as builder:
        builder.append_many(np.concatenate(tokens), lengths, text_bytes=4 * int(lengths.sum()))


def write_config(folder: Path, **overrides: Any) -> Path:
    """Token files and a config in `folder`; `overrides` replace whole dotted keys, as in `train__steps=5`."""
    for number, lang in enumerate(("en", "zh")):
        write_tokens(folder / lang, lang, documents=300, seed=number)
        write_tokens(folder / f"{lang}.heldout", lang, documents=20, seed=10 + number)
    config: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {
            "mindllm": {
                "vocab_size": VOCAB, "hidden_size": 32, "ffn_size": 48, "n_layers": 2, "n_heads": 2, "max_seq_len": 32,
            }
        },
        "data": {
            "seq_len": 32,
            "sources": {lang: str(folder / lang) for lang in ("en", "zh")},
            "heldout": {lang: str(folder / f"{lang}.heldout") for lang in ("en", "zh")},
        },
        "optim": {"lr": 3e-3, "schedule": {"kind": "linear", "warmup_steps": 3}},
        "train": {
            "steps": 12, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32", "eval_every": 6,
            "checkpoint_every": 4, "tensorboard": False,
        },
    }  # fmt: skip
    for key, value in overrides.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def train_here(config: Path, *options: str) -> None:
    """The run in this process, as a world of one."""
    pretrain(parse_arguments(RunConfig, "", ["--config", str(config), *options]))


def command(config: Path, *options: str, ranks: int = 1) -> list[str]:
    """The command line of a run in processes of its own."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, str(PRETRAIN), "--config", str(config), *options]


def environment() -> dict[str, str]:
    """One thread a process, so that two tests side by side do not fight for the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(config: Path, *options: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command(config, *options, ranks=ranks), capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=240
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """The run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[tuple[int, float, float, float]]:
    """(step, loss, loss of en, gradient norm) of each reported step, and held-out losses with step and zeros."""
    return [
        (record["step"], record["loss"], record.get("loss/en", 0.0), record["grad_norm"])
        if "loss" in record
        else (record["step"], record["heldout_loss"], 0.0, 0.0)
        for record in records(folder)
    ]
