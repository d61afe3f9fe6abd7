"""Tiny networks and tokenizers, as a run of the engine and as a folder that lm-eval's own `hf` backend reads."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from lm_eval.api.instance import Instance
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mindllm_engine.corpus.byte_level_tokenizer import ByteLevelTokenizer
from mindllm_engine.evaluation.gpt_neo_checkpoint import save_hf_checkpoint
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig
from tests.real_data import REAL_DATA

TEXTS = [
    "The cat sat on 12 mats.\n\nQ: Why?\nA: Nobody knows.",
    "猫坐在垫子上。答案：A\n问题：为什么？",
    "Answer: B C D A",
]

REAL_TEXT = REAL_DATA / "eval"
needs_real_text = pytest.mark.skipif(not REAL_TEXT.is_dir(), reason=f"the data sets of {REAL_TEXT} are not here")


def byte_level_tokenizer(folder: Path, texts: list[str], vocab_size: int = 600) -> ByteLevelTokenizer:
    """A tokenizer of GPT-2's kind in `folder`, with what Transformers wants beside it. It begins texts with
    <|endoftext|> where special tokens are asked for."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ByteLevelTokenizer(folder / "tokenizer.json")


def gpt_neo(vocab_size: int, max_seq_len: int = 1024, window_size: int = 64) -> GPTNeo:
    """Random weights, larger than fresh ones so that answers differ."""
    config = GPTNeoConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        ffn_size=128,
        n_layers=2,
        n_heads=4,
        max_seq_len=max_seq_len,
        window_size=window_size,
    )
    model = config.build(dtype=torch.float32, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model.eval()


def hf_backend(folder: Path, model: GPTNeo, **options):
    """lm-eval's `hf` backend on the same weights; `folder` holds the tokenizer."""
    from lm_eval.models.huggingface import HFLM

    save_hf_checkpoint(model, folder)
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", **options)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("a_task", number, 1))
        for number, each in enumerate(arguments)
    ]
