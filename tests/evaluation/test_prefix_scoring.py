"""Scores of sequences that share beginnings, against a forward of each whole sequence by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.evaluation.prefix_scoring import Scored, score
from mindllm_engine.evaluation.token_tree import build_tree
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPM, MiniCPMConfig

VOCAB = 97


def gpt_neo() -> GPTNeo:
    config = GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_size=64, n_layers=3, n_heads=4, max_seq_len=700, window_size=24
    )
    return _spread(config.build(dtype=torch.float32, seed=3))


def mindllm() -> MindLLM:
    config = MindLLMConfig(vocab_size=VOCAB, hidden_size=32, ffn_size=64, n_layers=2, n_heads=2, max_seq_len=700)
    return _spread(config.build(dtype=torch.float32, seed=4))


def minicpm() -> MiniCPM:
    config = MiniCPMConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_size=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=700
    )
    return _spread(config.build(dtype=torch.float32, seed=5))


def _spread(model):
    """Larger weights, so that attention is far from even and a key too many or too few shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model.eval()


MODELS = {"gpt_neo": gpt_neo(), "mindllm": mindllm(), "minicpm": minicpm()}


@torch.inference_mode()
def oracle(model, sequence: Scored) -> tuple[np.ndarray, np.ndarray]:
    """One whole sequence, all logits, no cache."""
    fed = torch.from_numpy(sequence.tokens[:-1].astype(np.int64))
    logits = model(fed, torch.arange(len(fed)), torch.tensor([0, len(fed)], dtype=torch.int32)).double()
    rows = torch.log_softmax(logits, dim=-1)[sequence.first - 1 :]
    targets = torch.from_numpy(sequence.tokens[sequence.first :].astype(np.int64))
    return rows.gather(1, targets[:, None])[:, 0].numpy(), (logits[sequence.first - 1 :].argmax(-1) == targets).numpy()


def few_shot(rng: np.random.Generator) -> list[Scored]:
    """Two long prefixes, questions behind each, candidates behind each question, of one token and of several."""
    sequences = []
    for prefix_length in (300, 41):
        prefix = rng.integers(0, VOCAB, prefix_length)
        for _ in range(4):
            question = np.append(prefix, rng.integers(0, VOCAB, rng.integers(1, 60)))
            for length in (1, 1, 5, 20, 1):
                tokens = np.append(question, rng.integers(0, VOCAB, length)).astype(np.int32)
                sequences.append(Scored(tokens, len(question)))
    return [sequences[number] for number in rng.permutation(len(sequences))]


def check(model, sequences: list[Scored], pack_tokens: int) -> None:
    for sequence, found in zip(sequences, score(model, sequences, pack_tokens), strict=True):
        log_probabilities, is_likeliest = oracle(model, sequence)
        np.testing.assert_allclose(found.log_probabilities, log_probabilities, atol=1e-4, rtol=1e-5)
        np.testing.assert_array_equal(found.is_likeliest, is_likeliest)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("pack_tokens", [1, 100, 100_000])
def test_few_shot_questions_score_as_each_alone_does(model, pack_tokens: int) -> None:
    check(model, few_shot(np.random.default_rng(1)), pack_tokens)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_sequences_longer_than_a_block_of_queries(model) -> None:
    rng = np.random.default_rng(5)
    prefix = rng.integers(0, VOCAB, 100)
    tails = [np.append(prefix, rng.integers(0, VOCAB, length)).astype(np.int32) for length in (600, 300, 3)]
    check(model, [Scored(tokens, 101) for tokens in tails], 100_000)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_all_tokens_of_prompt_and_answer_can_be_scored(model) -> None:
    check(model, [Scored(sequence.tokens, 1) for sequence in few_shot(np.random.default_rng(2))], 256)


def test_packs_do_not_change_scores() -> None:
    model, sequences = MODELS["gpt_neo"], few_shot(np.random.default_rng(9))
    a, b = score(model, sequences, 64), score(model, sequences, 100_000)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-5)


def test_progress_counts_every_sequence_once() -> None:
    sequences, told = few_shot(np.random.default_rng(3)), []
    score(MODELS["mindllm"], sequences, 200, progress=told.append)
    assert sum(told) == len(sequences)
    assert len(told) > 1


# Short alphabets, so that beginnings, whole sequences and single tokens coincide.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 5), st.data())
def test_any_sequences(lists: list[list[int]], min_shared: int, data: st.DataObject) -> None:
    sequences = [Scored(np.array(tokens, np.int32), data.draw(st.integers(1, len(tokens) - 1))) for tokens in lists]
    check(MODELS["gpt_neo"], sequences, data.draw(st.integers(1, 30)))
    roots, ends = build_tree([sequence.tokens for sequence in sequences], min_shared)
    for sequence, end in zip(sequences, ends, strict=True):
        path = end.path()
        assert path[0] in roots
        assert np.concatenate([node.tokens for node in path]).tolist() == sequence.tokens.tolist()
    distinct = {tuple(tokens[: end + 1]) for tokens in lists for end in range(len(tokens))}
    nodes = {id(node): node for end in ends for node in end.path()}
    held = sum(len(node.tokens) for node in nodes.values())
    assert held >= len(distinct)
    if min_shared == 1:  # then the tree is the trie: nothing is held twice
        assert held == len(distinct)
