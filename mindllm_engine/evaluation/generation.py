"""Text from a trained network: one sequence, greedy or by nucleus sampling (arXiv 1904.09751, section 3.1)."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mindllm_engine.errors import ConfigError
from mindllm_engine.models import Network


def generate(
    model: Network,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_id: int | None = None,
    seed: int = 0,
    use_cache: bool = True,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Yield new tokens one by one, until `max_new_tokens`, `eos_id` (which is yielded) or the model's max_seq_len.

    Args:
        prompt_ids: At least one token.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Sample from the smallest set of likeliest tokens whose probabilities reach it; in (0, 1].
        seed: The same seed gives the same tokens, with and without the cache as far as their logits agree.
        use_cache: Keep keys and values, so that a token costs one token's forward. Without, each costs the whole
        text's.
        vocab_size: Draw ids below it only: the tokenizer's, where the model's is larger. The model's by default.

    Raises ConfigError, before the first token, for an empty or too long prompt, a token outside the vocabulary, or a
    parameter out of its range.
    """
    limit = model.config.max_seq_len
    if not prompt_ids:
        raise ConfigError("generation needs a prompt of at least one token")
    if len(prompt_ids) > limit:
        raise ConfigError(f"the prompt has {len(prompt_ids)} tokens; the model takes {limit}")
    if min(prompt_ids) < 0 or max(prompt_ids) >= model.config.vocab_size:
        raise ConfigError(f"the prompt has a token outside the vocabulary of {model.config.vocab_size}")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature must be 0 or above, not {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be above 0 and at most 1, not {top_p}")
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens must be 0 or above, not {max_new_tokens}")
    count = min(max_new_tokens, limit - len(prompt_ids) + 1)  # the last token is not fed back
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"seed must lie in [0, 2**63), not {seed}")
    ids = vocab_size or model.config.vocab_size
    return _generate(model, list(prompt_ids), count, temperature, top_p, eos_id, seed, use_cache, ids)


def _generate(
    model: Network,
    text: list[int],
    count: int,
    temperature: float,
    top_p: float,
    eos_id: int | None,
    seed: int,
    use_cache: bool,
    vocab_size: int,
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(len(text) + count) if use_cache else None
    device = model.embedding.device
    for _ in range(count):
        start = 0 if cache is None else cache.length
        tokens = torch.tensor(text[start:], device=device)
        positions = torch.arange(start, len(text), device=device)
        cu_seqlens = torch.tensor([0, len(text) - start], dtype=torch.int32, device=device)
        # Not around the whole loop: a generator would leave the mode switched on for its caller between two tokens.
        with torch.inference_mode():
            logits = model(tokens, positions, cu_seqlens, cache=cache, last_only=True)[0]
        token = sample_token(logits[:vocab_size], temperature, top_p, generator)
        text.append(token)
        yield token
        if token == eos_id:
            return


def sample_token(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from `logits` (vocab,), on the CPU in fp32: a seed gives the same token wherever the model lies."""
    logits = logits.float().cpu()
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax((logits - logits.max()) / temperature, dim=-1)
    if top_p < 1:
        ordered, tokens = probabilities.sort(descending=True, stable=True)
        # A token stays if those before it have not reached top_p, so the likeliest always stays.
        kept = ordered.cumsum(0) - ordered < top_p
        ordered, tokens = ordered[kept], tokens[kept]
        return int(tokens[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


class TextStream:
    """The text of tokens as they come, where one token may be a single byte of a character.

    `add` gives what the new tokens make certain. A character whose bytes are not complete is decoded to U+FFFD at the
    text's end, so trailing U+FFFD are held back until more tokens come, and `finish` gives them.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that `token` completes, which may be empty."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        piece = text.rstrip("\ufffd")[self._shown :]
        self._shown += len(piece)
        return piece

    def finish(self) -> str:
        """What is left at the end: U+FFFD for bytes that never made a character."""
        piece = self._decode(self._tokens)[self._shown :]
        self._shown += len(piece)
        return piece
