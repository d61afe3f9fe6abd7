"""Choosing a network by the key that is given."""

from dataclasses import asdict

import pytest
import torch

from mindllm_engine.errors import ConfigError
from mindllm_engine.models import ModelConfig, NetworkConfig
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPM, MiniCPMConfig

MINDLLM = MindLLMConfig(vocab_size=11, hidden_size=8, ffn_size=8, n_layers=1, n_heads=2, max_seq_len=8)
GPT_NEO = GPTNeoConfig(vocab_size=11, hidden_size=8, ffn_size=8, n_layers=1, n_heads=2, max_seq_len=8)

MINICPM = MiniCPMConfig(
    vocab_size=11, hidden_size=8, ffn_size=8, n_layers=1, n_heads=2, n_kv_heads=1, max_seq_len=8, scale_depth=1.4
)


def test_the_given_network_is_built() -> None:
    assert isinstance(ModelConfig(mindllm=MINDLLM).build(device="meta"), MindLLM)
    assert isinstance(ModelConfig(minicpm=MINICPM).build(device="meta"), MiniCPM)
    model = ModelConfig(gpt_neo=GPT_NEO).build(dtype=torch.bfloat16, seed=0)
    assert isinstance(model, GPTNeo)
    assert model.embedding.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [MINDLLM, GPT_NEO, MINICPM])
def test_a_dictionary_stands_for_the_same_network(config: NetworkConfig) -> None:
    chosen = ModelConfig.of(config)
    assert chosen.selected is config
    saved = asdict(chosen)
    assert ModelConfig.from_dict(saved) == chosen
    before_there_were_others = {key: value for key, value in saved.items() if value is not None}
    assert ModelConfig.from_dict(before_there_were_others) == chosen


def test_none_or_several_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"names no network; give model\.mindllm or model\.gpt_neo or model\.minicpm"):
        ModelConfig().validate()
    with pytest.raises(ConfigError, match=r"model\.mindllm and model\.minicpm are all given"):
        ModelConfig(mindllm=MINDLLM, minicpm=MINICPM).validate()
