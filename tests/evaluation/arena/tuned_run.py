"""A run folder as tuning leaves it, small enough for tests: a network of a few steps, its tokenizer and template."""

from pathlib import Path

import numpy as np
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.chat_template import ChatTemplate, TemplateConfig
from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain

SEQ_LEN = 128
TEXTS = [f"合同第{number}条：欠款应当归还。 The debt of {number} yuan is due." for number in range(200)]


def tuned_run(folder: Path, seed: int = 3, max_seq_len: int = SEQ_LEN) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(TEXTS, 350, folder / "made.model", special_tokens=True)
    documents = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
    with TokenFileBuilder(
        folder / "text", "uint16", name="text", lang="zh", category="web", tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
    ) as builder:  # fmt: skip
        builder.append_many(np.concatenate(documents), np.array(list(map(len, documents))), 1000)
    config = {
        "run": {"dir": str(folder / "run"), "seed": seed},
        "model": {
            "mindllm": {
                "vocab_size": tokenizer.vocab_size + 4, "hidden_size": 64, "ffn_size": 96, "n_layers": 2, "n_heads": 2,
                "max_seq_len": max_seq_len,
            }
        },
        "data": {
            "seq_len": 64, "sources": {"text": str(folder / "text")}, "tokenizer": str(tokenizer.model_path),
            "blocks": [{"max_epochs": 100}],
        },
        "optim": {"lr": 3e-3, "schedule": {"kind": "linear", "warmup_steps": 1}},
        "train": {
            "steps": 3, "global_batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "tensorboard": False,
        },
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    pretrain(parse_arguments(RunConfig, "", ["--config", str(path)]))
    ChatTemplate(TemplateConfig(), tokenizer).save(folder / "run")
    return folder / "run"
