"""Generation with and without the cache, sampling, and streaming of byte-fallback pieces."""

import pytest
import torch

from mindllm_engine.errors import ConfigError
from mindllm_engine.evaluation.generation import TextStream, generate, sample_token
from mindllm_engine.models import ModelConfig, Network
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig

SIZES = {"vocab_size": 61, "hidden_size": 32, "ffn_size": 48, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}
CONFIGS = [
    ModelConfig(mindllm=MindLLMConfig(**SIZES)),
    ModelConfig(gpt_neo=GPTNeoConfig(**SIZES, window_size=8)),
    ModelConfig(minicpm=MiniCPMConfig(**(SIZES | {"n_heads": 4}), n_kv_heads=2, width_base=16)),
]
PROMPT = [1, 7, 33, 5, 60, 12]


@pytest.fixture(params=CONFIGS, ids=["mindllm", "gpt_neo", "minicpm"])
def model(request: pytest.FixtureRequest) -> Network:
    model = request.param.build(seed=3)
    with torch.no_grad():  # far from uniform logits, so that rounding cannot change a choice
        for parameter in model.parameters():
            parameter.mul_(1.5 if parameter.ndim == 2 else 1.0)
    return model


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_with_and_without_cache_the_same_tokens(model: Network, temperature: float) -> None:
    cached, whole = (
        list(generate(model, PROMPT, 40, temperature=temperature, top_p=0.9, seed=2, use_cache=use_cache))
        for use_cache in (True, False)
    )
    assert cached == whole
    assert len(cached) == 40


def test_cached_logits_equal_whole_ones(model: Network) -> None:
    tokens = torch.arange(30) * 7 % 61
    with torch.no_grad():
        whole = model(tokens, torch.arange(30), torch.tensor([0, 30], dtype=torch.int32))
        cache = model.new_cache(30)
        start = 0
        for count in (13, 1, 1, 5, 10):
            part = slice(start, start + count)
            offsets = torch.tensor([0, count], dtype=torch.int32)
            logits = model(tokens[part], torch.arange(30)[part], offsets, cache=cache)
            torch.testing.assert_close(logits, whole[part], rtol=1e-5, atol=1e-5)
            start += count
        with pytest.raises(ValueError, match="cache holds 30"):
            model(tokens[:1], torch.tensor([30]), torch.tensor([0, 1], dtype=torch.int32), cache=cache)


def test_a_seed_gives_the_same_text_and_the_callers_random_state_stays(model: Network) -> None:
    state = torch.get_rng_state()
    first, again, other = (list(generate(model, PROMPT, 20, temperature=1.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_stops_after_eos_and_at_the_models_length(model: Network) -> None:
    greedy = list(generate(model, PROMPT, 10, temperature=0))
    stopped = list(generate(model, PROMPT, 10, temperature=0, eos_id=greedy[3]))
    assert stopped == greedy[: greedy.index(greedy[3]) + 1]
    # All 64 positions may be fed; the token after the last of them is the 59th new one.
    assert len(list(generate(model, PROMPT, 1000))) == 64 - len(PROMPT) + 1
    assert list(generate(model, PROMPT, 0)) == []


def test_nucleus_holds_the_likeliest_tokens_only() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_token(logits, 1.0, 0.7, generator) for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 400 == pytest.approx(0.5 / 0.8, abs=0.08)
    assert {sample_token(logits, 1.0, 1e-6, generator) for _ in range(20)} == {0}
    assert {sample_token(logits, 1.0, 1.0, generator) for _ in range(400)} == {0, 1, 2, 3}
    assert {sample_token(logits, 0.01, 1.0, generator) for _ in range(20)} == {0}
    assert sample_token(1e30 * logits, 1e-30, 1.0, generator) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_ids": []}, "at least one token"),
        ({"prompt_ids": [1] * 65}, "65 tokens"),
        ({"prompt_ids": [61]}, "vocabulary"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_impossible_requests_are_refused_at_once(model: Network, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(**({"model": model, "prompt_ids": PROMPT, "max_new_tokens": 5} | arguments))


def decode_bytes(tokens: list[int]) -> str:
    """A tokenizer whose tokens are bytes, as the fallback pieces are."""
    return bytes(tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["héllo", "从前有一只猫", "a😀b", "\ufffd at the start, and \ufffd", ""])
def test_a_stream_of_bytes_gives_the_text(text: str) -> None:
    stream = TextStream(decode_bytes)
    pieces = [stream.add(token) for token in text.encode()]
    assert "".join(pieces) + stream.finish() == text
    assert all(not piece.endswith("\ufffd") for piece in pieces)


def test_invalid_bytes_do_not_crash_a_stream() -> None:
    tokens = [*"猫".encode()[:2], *b"ab", 0xFF, *"从".encode()[:1]]
    stream = TextStream(decode_bytes)
    text = "".join(map(stream.add, tokens)) + stream.finish()
    assert text == decode_bytes(tokens)
