"""Packed losses against the logits of one sequence at a time, for both networks."""

import numpy as np
import pytest
import torch

from mindllm_engine.models import ModelConfig, Network
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig
from mindllm_engine.training.scoring import packs_of, token_losses

SIZES = {"vocab_size": 61, "hidden_size": 32, "ffn_size": 48, "n_layers": 2, "n_heads": 2, "max_seq_len": 300}
CONFIGS = [
    ModelConfig(mindllm=MindLLMConfig(**SIZES)),
    ModelConfig(gpt_neo=GPTNeoConfig(**SIZES, window_size=8)),
    ModelConfig(minicpm=MiniCPMConfig(**(SIZES | {"n_heads": 4}), n_kv_heads=2, width_base=16)),
]


@pytest.fixture(params=CONFIGS, ids=["mindllm", "gpt_neo", "minicpm"])
def model(request: pytest.FixtureRequest) -> Network:
    model = request.param.build(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0 if parameter.ndim == 2 else 1.0)
    return model.eval()


def sequences(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = [2, 300, 2, *rng.integers(2, 90, 20), 257]
    return [rng.integers(0, 61, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("pack_tokens", [1, 97, 300, 100_000])
def test_losses_are_those_of_each_sequence_alone(model: Network, pack_tokens: int) -> None:
    given = sequences(seed=0)
    found = dict(token_losses(model, given, pack_tokens))
    assert sorted(found) == list(range(len(given)))
    for number, ids in enumerate(given):
        tokens = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            logits = model(tokens, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
        expected = torch.nn.functional.cross_entropy(logits[:-1].double(), tokens[1:], reduction="none")
        assert found[number].dtype == np.float32
        np.testing.assert_allclose(found[number], expected.numpy(), rtol=2e-5, atol=2e-6)


def test_the_longest_come_first_and_nothing_gives_nothing(model: Network) -> None:
    given = sequences(seed=1)
    lengths = [len(given[number]) for number, _ in token_losses(model, given, 200)]
    assert lengths == sorted(lengths, reverse=True)
    assert list(token_losses(model, [])) == []


def test_again_the_same_bits_and_no_gradients(model: Network) -> None:
    given = sequences(seed=2)
    one, two = (dict(token_losses(model, given, 400)) for _ in range(2))
    assert all(one[number].tobytes() == two[number].tobytes() for number in one)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("pack_tokens", [1, 10, 64])
def test_packs_hold_each_sequence_once_and_no_more_than_fits(pack_tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(2, 40, 200).tolist()
    packs = list(packs_of(lengths, pack_tokens))
    assert sorted(number for pack in packs for number in pack) == list(range(200))
    assert all(len(pack) == 1 or sum(lengths[number] for number in pack) <= pack_tokens for pack in packs)
