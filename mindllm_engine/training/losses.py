"""Losses summed by source, on the device, to be read when a number must be printed."""

import torch
from torch import Tensor, nn

from mindllm_engine.data.loader import IGNORED, Batch
from mindllm_engine.distributed import watchdog
from mindllm_engine.distributed.process_group import all_reduce_sum


class SourceLosses:
    """Sum of losses and number of supervised tokens of each source, (sources, 2) fp64."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.sums = torch.zeros(sources, 2, dtype=torch.float64, device=device)

    def add(self, batch: Batch, losses: Tensor) -> None:
        """Add a micro-batch with its per-token losses (T,), which are 0 at ignored targets."""
        values = torch.stack((losses.detach().double(), (batch.targets != IGNORED).double()), dim=1)  # (T, 2)
        self.sums.index_add_(0, batch.source_ids, values)

    def totals(self) -> Tensor:
        """(2,) fp64: the sum of losses in nats and the supervised tokens so far, of all sources, on this rank."""
        return self.sums.sum(dim=0)

    def over_all_ranks(self) -> list[tuple[float, int]]:
        """(sum of losses in nats, supervised tokens) of each source over all ranks. Waits for the device."""
        return [(loss, int(count)) for loss, count in all_reduce_sum(self.sums.clone()).tolist()]


@torch.no_grad()
def heldout_losses(
    model: nn.Module, batches: list[Batch], sources: int, device: torch.device
) -> list[tuple[float, int]]:
    """(sum of losses in nats, supervised tokens) of each source over all ranks, this rank reading `batches`."""
    model.eval()
    losses = SourceLosses(sources, device)
    for batch in batches:
        watchdog.mark("held-out data")
        batch = batch.to(device)
        losses.add(batch, model(batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets))
    model.train()
    watchdog.mark("held-out losses")
    return losses.over_all_ranks()
