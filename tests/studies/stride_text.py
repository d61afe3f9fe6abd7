"""Languages of strides for the studies' tests: each token lies a few ids after the one before it, so that languages
contradict each other; and the config of runs on them, which train in a second or two."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mindllm_engine.data.token_file_builder import TokenFileBuilder

VOCAB = 48
SEQ_LEN = 32
TOKENIZER = "a" * 16
STRIDES = 3
"""Equally likely strides of a language: its entropy is ln 3 nats a token."""
ENTROPY = math.log(STRIDES)


def write_language(prefix: Path, lang: str, first_stride: int, documents: int, seed: int, category: str) -> None:
    """Documents of 33 tokens, of which each lies `first_stride` to `first_stride + 2` ids after the one before it,
    around a ring. A token counts as a byte of text."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, VOCAB, (documents, 1))
    strides = first_stride + rng.integers(0, STRIDES, (documents, SEQ_LEN))
    tokens = np.concatenate([starts, starts + strides.cumsum(axis=1)], axis=1) % VOCAB
    with TokenFileBuilder(
        prefix, "uint16", name=prefix.name.split(".")[0], lang=lang, category=category, tokenizer_hash=TOKENIZER,
        vocab_size=VOCAB,
    ) as builder:  # fmt: skip
        builder.append_many(tokens.reshape(-1), np.full(documents, SEQ_LEN + 1), text_bytes=tokens.size)


def write_base(folder: Path, sources: dict[str, tuple[str, int]], **sections: dict[str, Any]) -> Path:
    """Token files and the runs' config.

    Args:
        sources: name -> (language, first stride).
        sections: keys to replace in a section of the config, as in `train={"steps": 5}`.
    """
    for number, (name, (lang, stride)) in enumerate(sources.items()):
        write_language(folder / name, lang, stride, 1200, number, name)
        write_language(folder / f"{name}.heldout", lang, stride, 40, 100 + number, name)
    config: dict[str, dict[str, Any]] = {
        "run": {"dir": "unused"},
        "model": {
            "gpt_neo": {
                "vocab_size": VOCAB, "hidden_size": 32, "ffn_size": 64, "n_layers": 1, "n_heads": 2,
                "max_seq_len": SEQ_LEN, "window_size": 16,
            }
        },
        "data": {
            "seq_len": SEQ_LEN,
            "sources": {name: str(folder / name) for name in sources},
            "heldout": {name: str(folder / f"{name}.heldout") for name in sources},
        },
        "optim": {"lr": 1e-2, "schedule": {"kind": "linear", "warmup_steps": 3, "min_lr": 1e-3}},
        "train": {
            "steps": 10, "global_batch_size": 8, "micro_batch_size": 8, "precision": "fp32", "tensorboard": False,
            "log_every": 5, "keep_checkpoints": 1,
        },
    }  # fmt: skip
    for section, values in sections.items():
        config[section] |= values
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
