"""Losses of many sequences under a network, packed: for entropies of instruction data, reference log-probabilities,
and perplexities.

Whole sequences lie back to back in a pack, so no token is padding. On a GPU the next pack is under way while the losses
of the one before it are read; on a CPU the projection onto the vocabulary bounds small networks.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mindllm_engine.data.loader import IGNORED
from mindllm_engine.kernels.attention import remember_offsets
from mindllm_engine.models import Network

# Tokens in a forward. More do not fill a GPU better, and take memory.
PACK_TOKENS = 32768


def token_losses(
    model: Network, sequences: Sequence[npt.NDArray[np.integer]], pack_tokens: int = PACK_TOKENS
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(number of the sequence, losses (len - 1,) in nats of its tokens but the first), the longest sequences first.

    Whole sequences are packed up to `pack_tokens` (at least one), and do not see each other. Each has between 2 and
    the network's max_seq_len tokens. The same sequences and `pack_tokens` give the same bits; other packs change a loss
    by rounding alone.
    """
    previous: tuple[list[int], Tensor] | None = None
    for pack in packs_of([len(sequence) for sequence in sequences], pack_tokens):
        launched = pack, _losses(model, [sequences[number] for number in pack])
        if previous is not None:
            yield from _read(*previous, sequences)
        previous = launched
    if previous is not None:
        yield from _read(*previous, sequences)


def packs_of(lengths: list[int], pack_tokens: int) -> Iterator[list[int]]:
    """The numbers of the sequences of each pack. Sequences of like length come together: attention on a CPU then meets
    few shapes."""
    pack: list[int] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if pack and tokens + lengths[number] > pack_tokens:
            yield pack
            pack, tokens = [], 0
        pack.append(number)
        tokens += lengths[number]
    if pack:
        yield pack


@torch.no_grad()
def _losses(model: Network, sequences: list[npt.NDArray[np.integer]]) -> Tensor:
    """The loss (tokens,) at every token of a pack, of the token that follows it; 0 at the last of each sequence."""
    lengths = np.array([len(sequence) for sequence in sequences])
    ends = np.cumsum(lengths)
    ids = np.concatenate(sequences).astype(np.int64)
    targets = np.append(ids[1:], IGNORED)
    targets[ends - 1] = IGNORED
    positions = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)
    offsets = np.append(0, ends).astype(np.int32)
    device = model.embedding.device
    tokens, places, cu_seqlens, following = (
        torch.from_numpy(part).to(device) for part in (ids, positions, offsets, targets)
    )
    remember_offsets(cu_seqlens, offsets.tolist())  # or every layer would wait for the GPU to read them
    losses: Tensor = model(tokens, places, cu_seqlens, targets=following)
    return losses


def _read(
    pack: list[int], losses: Tensor, sequences: Sequence[npt.NDArray[np.integer]]
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    ends = np.cumsum([len(sequences[number]) for number in pack])
    parts = np.split(losses.float().cpu().numpy(), ends[:-1])
    yield from ((number, part[:-1]) for number, part in zip(pack, parts, strict=True))
