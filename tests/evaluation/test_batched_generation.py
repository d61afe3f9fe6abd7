"""Batched decoding against the one-sequence generator, which has tests of its own."""

import numpy as np
import pytest

from mindllm_engine.evaluation.batched_generation import Sampling, generate_batch
from mindllm_engine.evaluation.generation import generate
from tests.evaluation.test_prefix_scoring import MODELS, VOCAB

EOS = 7


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    shared = rng.integers(0, VOCAB, 40)
    tails = [rng.integers(0, VOCAB, length) for length in (1, 5, 60, 5)]
    mine = [np.append(shared, tail).astype(np.int32) for tail in tails]
    return [*mine, shared.astype(np.int32), rng.integers(0, VOCAB, 1).astype(np.int32), mine[0]]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.3, top_p=0.9)])
def test_tokens_are_those_of_each_prompt_alone(model, sampling: Sampling) -> None:
    texts = prompts()
    seeds = list(range(len(texts)))
    found = generate_batch(model, texts, 50, VOCAB, lambda new: new[-1] == EOS, sampling, seeds)
    for prompt, seed, new in zip(texts, seeds, found, strict=True):
        alone = generate(model, prompt.tolist(), 50, sampling.temperature, sampling.top_p, EOS, seed)
        assert new == list(alone)


def test_a_small_vocabulary_is_kept_to() -> None:
    found = generate_batch(MODELS["mindllm"], prompts(), 30, 11, lambda new: False, Sampling(1.0), range(7))
    assert {token for new in found for token in new} <= set(range(11))
    assert [len(new) for new in found] == [30] * 7
