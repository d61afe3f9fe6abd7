"""A run folder with a small GPT-Neo or MindLLM, trained for a step, its tokenizer, and instruction data to score."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from tests.corpus.conftest import EN_WORDS, ZH_WORDS, make_documents
from tests.training.tiny_run import train_here, write_config

VOCAB = 420
MAX_TOKENS = 96


def make_run(folder: Path, kind: str = "gpt_neo", special_tokens: bool = True) -> Path:
    """The run folder, under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = make_documents(40, seed=1)
    tokenizer = train_tokenizer(texts, VOCAB, folder / "tokenizer.model", special_tokens=special_tokens)
    ids, lengths = tokenizer.encode_batch(texts)
    builder = TokenFileBuilder(
        folder / "text", "uint16", name="text", lang="en", category="web", tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    with builder:
        builder.append_many(ids, lengths, text_bytes=sum(len(text.encode()) for text in texts))
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "ffn_size": 96, "n_layers": 2, "n_heads": 2}
    config = write_config(
        folder,
        model={kind: sizes | {"max_seq_len": MAX_TOKENS}},
        data__sources={"text": str(folder / "text")},
        data__heldout={"text": str(folder / "text")},
        data__tokenizer=str(folder / "tokenizer.model"),
        train__steps=2,
        train__eval_every=2,
    )
    train_here(config)
    return folder / "run"


def make_records(count: int, seed: int) -> list[dict[str, Any]]:
    """Instruction data of both languages, with and without an input, chats among them; all fit the network."""
    chooser = random.Random(seed)
    records: list[dict[str, Any]] = []
    for number in range(count):
        words, joint = (EN_WORDS, " ") if number % 2 else (ZH_WORDS, "")
        asked, given, answer = (joint.join(chooser.choices(words, k=chooser.randint(1, 8))) for _ in range(3))
        record: dict[str, Any] = {"id": f"r{number}", "lang": "en" if number % 2 else "zh"}
        if number % 7 == 3:
            turns = [("user", asked), ("assistant", given), ("user", "然后呢？"), ("assistant", answer)]
            record["messages"] = [{"role": role, "content": text} for role, text in turns]
        else:
            record |= {"instruction": asked, "input": given if number % 3 else "", "output": answer}
        records.append(record)
    return records


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def columns(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Columns of a file of scores, NaN where there is no number."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in names}
