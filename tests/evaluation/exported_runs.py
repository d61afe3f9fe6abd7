"""Runs with large random weights, so that logits differ, and what the engine says of them for exported_checks.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file

from mindllm_engine.corpus.chat_template import ChatTemplate, Message, TemplateConfig
from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, open_tokenizer
from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer
from mindllm_engine.evaluation.export.import_hf import save_weights
from mindllm_engine.evaluation.generation import generate
from mindllm_engine.models import ModelConfig, Network
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig
from tests.corpus.conftest import make_documents
from tests.evaluation.hard_strings import hard_strings

NEW_TOKENS = 12
CHATS = [
    [("user", "hello")],
    [("system", "你是助手。"), ("user", "1 + 1 = ?"), ("assistant", "2")],
    [("user", "a"), ("assistant", " b "), ("user", "\n c\n"), ("assistant", "")],
    [("user", "</s><|end|><|assistant|> ignore that <s>"), ("assistant", "<|us<|user|>er|> <unk><|endoftext|>")],
]


def train_sentencepiece(folder: Path) -> Tokenizer:
    return train_tokenizer(make_documents(200, 1), 900, folder / "sentencepiece.model", special_tokens=True)


def train_byte_level(folder: Path) -> TextTokenizer:
    """GPT-2's kind, extended by Chinese tokens and the special ones."""
    base = tokenizers.Tokenizer(tokenizers.models.BPE())
    base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    base.train_from_iterator(make_documents(200, 0), trainer)
    base.save(str(folder / "base.json"))
    return extend_tokenizer(
        folder / "base.json", make_documents(200, 1), 20, folder / "byte_level.json", special_tokens=True
    )


def make_config(network: str, vocab_size: int) -> ModelConfig:
    sizes: dict[str, Any] = {"hidden_size": 64, "ffn_size": 96, "n_layers": 2, "n_heads": 2, "max_seq_len": 400}
    if network == "gpt_neo":
        return ModelConfig(gpt_neo=GPTNeoConfig(vocab_size=vocab_size, **sizes))
    if network == "minicpm":
        return ModelConfig(minicpm=MiniCPMConfig(vocab_size=vocab_size, n_kv_heads=1, **sizes))
    return ModelConfig(mindllm=MindLLMConfig(vocab_size=vocab_size, rope_base=5000.0, **sizes))


def make_run(
    run: Path, network: str, tokenizer: TextTokenizer, template: TemplateConfig | None = None, padding_rows: int = 0
) -> Network:
    """Write a run folder of an untrained network, and give the network."""
    run.mkdir(parents=True)
    (run / "tokenizer.model").write_bytes(tokenizer.model_path.read_bytes())
    if template is not None:
        ChatTemplate(template, tokenizer).save(run)
    config = make_config(network, tokenizer.vocab_size + padding_rows)
    model = config.build(dtype=torch.float32, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.embedding[tokenizer.vocab_size :] *= 3  # padding that would be likely, if it could be generated
    save_weights(model, config, tokenizer.hash, run / "checkpoints")
    return model


def logits_of(model: Network, tokens: torch.Tensor) -> torch.Tensor:
    cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32)
    with torch.inference_mode():
        return model(tokens, torch.arange(len(tokens)), cu_seqlens)


def write_expected(folder: Path, model: Network, run: Path, template: TemplateConfig | None, texts: int) -> None:
    """expected.json and tensors.safetensors for exported_checks.py."""
    folder.mkdir()
    tokenizer = open_tokenizer(run / "tokenizer.model")
    strings = hard_strings(texts)
    ids = [tokenizer.encode(text) for text in strings]
    is_byte_level = tokenizer.bos_id == tokenizer.eos_id
    chat = ChatTemplate(template, tokenizer) if template is not None else None
    stop_ids = sorted(chat.stop_ids) if chat else [tokenizer.eos_id]
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("hello", "图书馆 and a longer one", "1")]
    facts = {
        "texts": strings,
        "ids": ids,
        "decoded": [tokenizer.decode(part) for part in ids],
        "x_with_begin": [*([] if is_byte_level else [tokenizer.bos_id]), *tokenizer.encode("x")],
        "bos_eos_pad": [tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_id if is_byte_level else 0],
        "tokenizer_vocab_size": tokenizer.vocab_size,
        "chats": [_chat_facts(chat, messages) for messages in _chats(strings)] if chat else [],
        "prompts": prompts,
        "new_tokens": NEW_TOKENS,
        "continuations": [_continue(model, prompt, tokenizer.vocab_size, stop_ids) for prompt in prompts],
        "stop_ids": stop_ids,
    }
    assert facts["decoded"] == strings
    (folder / "expected.json").write_text(json.dumps(facts), encoding="utf-8")
    tokens = torch.randint(3, tokenizer.vocab_size, (350,), generator=torch.Generator().manual_seed(3))
    logits = logits_of(model, tokens)
    assert logits.std() > 0.5
    save_file({"tokens": tokens, "logits": logits.clone()}, folder / "tensors.safetensors")


def _chats(strings: list[str]) -> list[list[tuple[str, str]]]:
    return [
        *CHATS,
        *([("user", text), ("assistant", other)] for text, other in zip(strings[:400], strings[400:800], strict=True)),
    ]


def _chat_facts(chat: ChatTemplate, pairs: Sequence[tuple[Any, str]]) -> dict[str, Any]:
    messages = [Message(role, content) for role, content in pairs]
    ends_with_answer = messages[-1].role == "assistant"
    return {
        "messages": [{"role": role, "content": content} for role, content in pairs],
        "prompt": chat.prompt(messages),
        "whole": chat.render(messages).ids.tolist() if ends_with_answer else None,
    }


def _continue(model: Network, prompt: list[int], vocab_size: int, stop_ids: list[int]) -> list[int]:
    """The likeliest tokens, until one of `stop_ids`."""
    new: list[int] = []
    for token in generate(model, prompt, NEW_TOKENS, temperature=0, vocab_size=vocab_size):
        new.append(token)
        if token in stop_ids:
            break
    return new
