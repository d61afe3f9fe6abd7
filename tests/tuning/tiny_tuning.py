"""A tuning small enough for tests: a tokenizer with chat symbols trained on the spot, a base run of a few steps, and
records of sums in both languages."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.tune import tune
from tests.training.tiny_run import ROOT, environment

TOKENIZER_IDS = 340
SEQ_LEN = 64
NETWORKS = {
    "mindllm": {"ffn_size": 96, "n_heads": 2},
    "gpt_neo": {"ffn_size": 128, "n_heads": 2, "window_size": 8},
}


def sums(count: int, seed: int, lang: str = "en") -> list[dict[str, str]]:
    """Records of small sums, some with an input beside the instruction."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        a, b = rng.randrange(10), rng.randrange(10)
        if lang == "zh":
            asked, given, answer = "请计算两数之和。", f"{a}加{b}等于几？", f"{a}加{b}等于{a + b}。"
        else:
            asked, given, answer = "Add the numbers.", f"{a} and {b}", f"The sum of {a} and {b} is {a + b}."
        if number % 3 == 0:
            asked, given = f"{asked} {given}", ""
        made.append({"instruction": asked, "input": given, "output": answer})
    return made


def write_records(path: Path, records: list[Any]) -> Path:
    """JSON lines; what is a string is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def make_tokenizer(path: Path, special_tokens: bool = True) -> Tokenizer:
    """A tokenizer of the records' text."""
    texts = [" ".join(record.values()) for lang in ("en", "zh") for record in sums(300, 7, lang)]
    return train_tokenizer(texts, TOKENIZER_IDS, path, special_tokens)


def base_run(
    folder: Path,
    network: str = "mindllm",
    steps: int = 4,
    special_tokens: bool = True,
    tokenizer: Path | None = None,
    seq_len: int = SEQ_LEN,
) -> Path:
    """The run folder of a network pre-trained for a few steps on the records' text; by default with a tokenizer of
    that text."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = Tokenizer(tokenizer) if tokenizer is not None else make_tokenizer(folder / "made.model", special_tokens)
    documents = [
        [tokens.bos_id, *tokens.encode(" ".join(record.values())), tokens.eos_id]
        for lang in ("en", "zh")
        for record in sums(200, 8, lang)
    ]
    with TokenFileBuilder(
        folder / "text", "uint16", name="text", lang="en", category="web", tokenizer_hash=tokens.hash,
        vocab_size=tokens.vocab_size,
    ) as builder:  # fmt: skip
        builder.append_many(np.concatenate(documents), np.array(list(map(len, documents))), 1000)
    sizes = {"vocab_size": tokens.vocab_size + 12, "hidden_size": 64, "n_layers": 2, "max_seq_len": seq_len}
    config = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {network: sizes | NETWORKS[network]},
        "data": {
            "seq_len": SEQ_LEN,
            "sources": {"text": str(folder / "text")},
            "tokenizer": str(tokens.model_path),
            "blocks": [{"max_epochs": 100}],
        },
        "optim": {"lr": 3e-3, "schedule": {"kind": "linear", "warmup_steps": 1}},
        "train": {
            "steps": steps, "global_batch_size": 8, "micro_batch_size": 4, "precision": "fp32", "tensorboard": False,
        },
    }  # fmt: skip
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(config))
    pretrain(parse_arguments(RunConfig, "", ["--config", str(path)]))
    return folder / "run"


def two_sources(folder: Path) -> dict[str, dict[str, str]]:
    """A plain and a gzipped file of records in `folder`, as `tuning.records` names them."""
    write_records(folder / "en.jsonl", sums(120, 1))
    zh = write_records(folder / "zh.jsonl", sums(80, 2, "zh"))
    (folder / "zh.jsonl.gz").write_bytes(gzip.compress(zh.read_bytes()))
    return {
        "sums_en": {"path": str(folder / "en.jsonl"), "lang": "en"},
        "sums_zh": {"path": str(folder / "zh.jsonl.gz"), "lang": "zh"},
    }


def write_tuning(folder: Path, base: Path, records: dict[str, Any], **overrides: Any) -> Path:
    """The configuration of a tuning in `folder`; `overrides` replace whole dotted keys, as in `train__steps=5`."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "seed": 5, "init_from": str(base)},
        "data": {"seq_len": SEQ_LEN, "blocks": [{"max_epochs": 100}]},
        "tuning": {"dir": str(folder / "tokens"), "heldout": 0.1, "records": records},
        "optim": {"lr": 1e-3, "schedule": {"kind": "linear", "warmup_steps": 2}},
        "train": {
            "steps": 6, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32", "tensorboard": False,
        },
    }  # fmt: skip
    for key, value in overrides.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    written = folder / "tune.yaml"
    written.write_text(yaml.safe_dump(config))
    return written


def read_tuning(config: Path, *options: str) -> TuneConfig:
    """The configuration as the tool reads it."""
    return parse_arguments(TuneConfig, "", ["--config", str(config), *options])


def tune_here(config: Path, *options: str) -> None:
    """The tuning in this process, as a world of one."""
    tune(read_tuning(config, *options))


def launch(tool: str, *options: str, ranks: int = 1, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A tool in processes of its own, to the end."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*launcher, str(ROOT / "tools" / tool), *options],
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=240, input=stdin,
        errors="surrogateescape",
    )  # fmt: skip
