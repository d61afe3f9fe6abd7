"""Continuations of many prompts at once: prompts that begin alike share their keys and values, and all decode together.

`generation.py` beside this file streams one text; both draw their tokens by the same rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mindllm_engine.evaluation.generation import sample_token
from mindllm_engine.evaluation.token_tree import Node, Tokens, build_tree
from mindllm_engine.evaluation.tree_forward import PACK_TOKENS, run_tree
from mindllm_engine.models import Network
from mindllm_engine.models.batch_cache import BatchCache
from mindllm_engine.models.tree_cache import Path


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: the likeliest where `temperature` is 0, else by nucleus sampling."""

    temperature: float = 0.0
    top_p: float = 1.0


@torch.inference_mode()
def generate_batch(
    model: Network,
    prompts: Sequence[Tokens],
    max_new_tokens: int,
    vocab_size: int,
    is_done: Callable[[list[int]], bool],
    sampling: Sampling,
    seeds: Sequence[int],
) -> list[list[int]]:
    """The new tokens of each prompt, up to `max_new_tokens` or those after which `is_done` says so (included).

    Args:
        prompts: int32[length] of at least one token each; with `max_new_tokens` more each fits the network's
            max_seq_len.
        vocab_size: ids below it are drawn: the tokenizer's, where the network has more.
        is_done: told of all new tokens of a prompt after each.
        seeds: of each prompt's draws, which depend on nothing else.
    """
    logits, paths = _prefill(model, prompts)
    cache = BatchCache(paths, model.config.n_layers, max_new_tokens)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    texts: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    while True:
        for number, token in zip(active, _draw(logits[:, :vocab_size], sampling, generators, active), strict=True):
            texts[number].append(token)
        rest = [
            place
            for place, number in enumerate(active)
            if len(texts[number]) < max_new_tokens and not is_done(texts[number])
        ]
        if not rest:
            return texts
        if len(rest) < len(active):
            cache.select(torch.tensor(rest, device=logits.device))
            active = [active[place] for place in rest]
        tokens = torch.tensor([texts[number][-1] for number in active], device=logits.device)
        offsets = torch.arange(len(active) + 1, dtype=torch.int32, device=logits.device)
        logits = model(tokens, cache.lengths().clone(), offsets, cache=cache)


def _prefill(model: Network, prompts: Sequence[Tokens]) -> tuple[Tensor, list[Path]]:
    """Of each prompt the logits (vocab,) after it, stacked, and its keys and values."""
    roots, ends = build_tree(prompts)
    last: dict[Node, tuple[Tensor, Path]] = {}

    def visit(pack: list[Node], hidden: Tensor, paths: dict[Node, Path]) -> None:
        for node, end in zip(pack, np.cumsum([len(node.tokens) for node in pack]).tolist(), strict=True):
            last[node] = (hidden[end - 1].clone(), paths[node])

    run_tree(model, roots, PACK_TOKENS, visit, keep_leaves=True)
    hidden = torch.stack([last[end][0] for end in ends])
    return torch.nn.functional.linear(hidden, model.embedding), [last[end][1] for end in ends]


def _draw(logits: Tensor, sampling: Sampling, generators: list[torch.Generator], active: list[int]) -> list[int]:
    if sampling.temperature == 0:
        greedy: list[int] = logits.argmax(dim=-1).tolist()
        return greedy
    return [
        sample_token(row, sampling.temperature, sampling.top_p, generators[number])
        for row, number in zip(logits, active, strict=True)
    ]
