"""Losses of many sequences under a network, packed: for entropies of instruction data, reference log-probabilities,
and perplexities."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from mindllm_engine.data.loader import IGNORED
from mindllm_engine.models.gpt_neo import GPTNeo
from mindllm_engine.models.mindllm import MindLLM

# Tokens in a forward. More do not fill a GPU better, and take memory.
PACK_TOKENS = 32768


@torch.inference_mode()
def token_losses(
    model: MindLLM | GPTNeo, sequences: Sequence[npt.NDArray[np.integer]], pack_tokens: int = PACK_TOKENS
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(number of the sequence, losses (len - 1,) in nats of its tokens but the first), the longest sequences first.

    Whole sequences are packed up to `pack_tokens` (at least one), and do not see each other. Each has between 2 and
    the network's max_seq_len tokens.
    """
    device = model.embedding.device
    waiting = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    while waiting:
        count, tokens = 0, 0
        while count < len(waiting) and (count == 0 or tokens + len(sequences[waiting[count]]) <= pack_tokens):
            tokens += len(sequences[waiting[count]])
            count += 1
        pack, waiting = waiting[:count], waiting[count:]
        lengths = np.array([len(sequences[number]) for number in pack])
        ends = np.cumsum(lengths)
        ids = np.concatenate([sequences[number] for number in pack]).astype(np.int64)
        targets = np.append(ids[1:], IGNORED)
        targets[ends - 1] = IGNORED
        positions = np.arange(tokens) - np.repeat(ends - lengths, lengths)
        cu_seqlens = torch.from_numpy(np.append(0, ends).astype(np.int32))
        losses = model(
            *(torch.from_numpy(part).to(device) for part in (ids, positions)),
            cu_seqlens.to(device),
            targets=torch.from_numpy(targets).to(device),
        )
        parts = np.split(losses.float().cpu().numpy(), ends[:-1])
        yield from ((number, part[:-1]) for number, part in zip(pack, parts, strict=True))
