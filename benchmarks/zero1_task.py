"""What every engine of `zero1.py` trains: one network, one stream of batches, one optimizer, the same on all.

The network has the proportions of the 3B one at a hundredth of its size: the tied embedding is a tenth of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig

BETAS, EPS, WEIGHT_DECAY, CLIP_NORM, LEARNING_RATE = (0.9, 0.95), 1e-8, 0.1, 1.0, 3e-4
# Batches repeat after so many steps.
STEPS_OF_DATA = 8
SHORTEST_DOCUMENT = 64


@dataclass(frozen=True)
class Batch:
    """Packed documents on the device; all tensors but the offsets are (tokens,)."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    cu_seqlens: Tensor


@dataclass(frozen=True)
class Task:
    """Network, tokens a rank in a micro-batch, micro-batches a step.

    `dtype` is that of weights and activations; master weights and moments are fp32 in any case.
    """

    network: MindLLMConfig
    micro_batch_tokens: int
    micro_batches: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        count = f"{self.micro_batches} micro-batches" if self.micro_batches > 1 else "one micro-batch"
        return f"{count} of {self.micro_batch_tokens:,} tokens a rank"

    @property
    def tokens(self) -> int:
        """A rank's tokens in a step."""
        return self.micro_batch_tokens * self.micro_batches

    def build(self, device: torch.device, dtype: torch.dtype | None = None) -> MindLLM:
        """The network, with the same weights on every rank and for every engine. Weights that begin in fp32 are those
        of `dtype`, so that all engines begin alike."""
        model = self.network.build(dtype=torch.float32, seed=1).to(self.dtype)
        return model.to(device, dtype or self.dtype)

    def batches(self, rank: int, device: torch.device) -> list[list[Batch]]:
        """The micro-batches of each step of this rank."""
        numbers = range(STEPS_OF_DATA * self.micro_batches)
        made = [self._batch((rank << 16) + number, device) for number in numbers]
        return [made[first : first + self.micro_batches] for first in range(0, len(made), self.micro_batches)]

    def _batch(self, seed: int, device: torch.device) -> Batch:
        """Documents of log-uniform lengths, in which a token mostly follows from the one before it."""
        generator = torch.Generator().manual_seed(seed)
        lengths: list[int] = []
        while (left := self.micro_batch_tokens - sum(lengths)) > 0:
            shortest = min(SHORTEST_DOCUMENT, self.micro_batch_tokens)
            exponent = torch.rand((), generator=generator).item()
            lengths.append(min(left, round(shortest * (self.network.max_seq_len / shortest) ** exponent)))
        steps = torch.randint(0, 4, (self.micro_batch_tokens + 1,), generator=generator)
        tokens = (steps + 5).cumsum(0) % self.network.vocab_size
        positions = torch.cat([torch.arange(length) for length in lengths])
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return Batch(*(x.to(device) for x in (tokens[:-1], tokens[1:], positions, offsets)))
