"""Choosing a network by the key that is given."""

import pytest
import torch

from mindllm_engine.errors import ConfigError
from mindllm_engine.models import ModelConfig
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig

MINDLLM = MindLLMConfig(vocab_size=11, hidden_size=8, ffn_size=8, n_layers=1, n_heads=2, max_seq_len=8)
GPT_NEO = GPTNeoConfig(vocab_size=11, hidden_size=8, ffn_size=8, n_layers=1, n_heads=2, max_seq_len=8)


def test_the_given_network_is_built() -> None:
    assert isinstance(ModelConfig(mindllm=MINDLLM).build(device="meta"), MindLLM)
    model = ModelConfig(gpt_neo=GPT_NEO).build(dtype=torch.bfloat16, seed=0)
    assert isinstance(model, GPTNeo)
    assert model.embedding.dtype == torch.bfloat16


def test_none_or_both_are_refused() -> None:
    with pytest.raises(ConfigError, match="names no network"):
        ModelConfig().validate()
    with pytest.raises(ConfigError, match="both"):
        ModelConfig(mindllm=MINDLLM, gpt_neo=GPT_NEO).validate()
