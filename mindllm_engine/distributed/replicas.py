"""Whether all ranks still hold the same weights: a hash of each parameter, compared over the ranks.

A flipped bit, a broken link or a race makes replicas drift apart in silence. The hash is integer arithmetic modulo 2^64
on the bits of the parameter, so its value does not depend on the order in which a device adds up.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mindllm_engine.errors import MindLLMError

# Elements hashed at a time: bounds the scratch, 24 bytes each.
CHUNK = 1 << 20
# Odd numbers of Knuth's golden ratio and of Steele and Vigna's mixer (arXiv 2001.05304), as signed 64-bit integers.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIXER = 0xD1342543DE82EF95 - (1 << 64)
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Ranks that a message names.
NAMED = 8


@cache
def multipliers(device: torch.device) -> Tensor:
    """(CHUNK,) int64, odd and without a pattern: one for each position, so that exchanged elements are seen."""
    numbers = torch.arange(1, CHUNK + 1, device=device) * GOLDEN
    return (numbers ^ (numbers >> 32)) * MIXER | 1


@torch.no_grad()
def hash_of(tensor: Tensor) -> Tensor:
    """() int64 on the tensor's device: a hash of its elements' bits and of where they stand. Any one bit changes it.

    A sum of the elements times odd multipliers, chunk by chunk; the sums of chunks are the digits of a number to the
    base `MIXER`. Does not wait for the device.
    """
    bits = tensor.detach().reshape(-1).view(BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk in bits.split(CHUNK):
        total = total * MIXER + (chunk.long() * multipliers(tensor.device)[: len(chunk)]).sum()
    return total


def hashes_of(model: nn.Module) -> Tensor:
    """(parameters,) int64 on the CPU: the hash of each parameter, in the order of `named_parameters()`."""
    return torch.stack([hash_of(parameter) for parameter in model.parameters()]).cpu()


def refuse_different_replicas(model: nn.Module, step: int) -> None:
    """Compare the weights of all ranks, which must be up to date. Waits for the device.

    Sends 8 bytes a rank to each; where they differ, 8 bytes a parameter.

    Raises:
        MindLLMError: on all ranks, naming the ranks that disagree with most of the others.
    """
    if not dist.is_initialized():
        return
    own = hashes_of(model)
    whole = hash_of(own)[None]
    if len(set(gather(whole))) == 1:
        return
    by_rank = gather(own)
    names = [name for name, _ in model.named_parameters()]
    raise MindLLMError(
        f"step {step}: {difference(by_rank, names)}; look at the memory, GPU and network of their hosts, and start the "
        "run again: it goes on from its newest checkpoint"
    )


def gather(own: Tensor) -> list[tuple[int, ...]]:
    """The numbers of each rank, given (n,) int64 on the CPU."""
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own)
    return [tuple(row.tolist()) for row in rows]


def difference(by_rank: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Who disagrees with whom, and in which parameter first, given the hashes of each rank's parameters, not all equal.

    Most of the ranks are right, if there are most.
    """
    ranks = [tuple(hashes) for hashes in by_rank]
    (standard, most), (_, second) = Counter(ranks).most_common(2)
    wrong = [rank for rank, hashes in enumerate(ranks) if hashes != standard]
    first = next(name for column, name in enumerate(names) if len({hashes[column] for hashes in ranks}) > 1)
    who = f"rank{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong[:NAMED]))}"
    if len(wrong) > NAMED:
        who += f" and {len(wrong) - NAMED} more"
    others = f"the other {most}" if most > second else f"rank {ranks.index(standard)}"
    return f"the weights of {who} differ from those of {others}, first in {first}"
