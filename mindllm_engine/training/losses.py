"""Losses summed by source, on the device, to be read when a number must be printed."""

import torch
from torch import Tensor

from mindllm_engine.data.loader import Batch
from mindllm_engine.distributed import watchdog
from mindllm_engine.distributed.process_group import all_reduce_sum
from mindllm_engine.models import Network
from mindllm_engine.training.stage import Losses, Stage


class SourceLosses:
    """Sum of losses and number of supervised tokens of each source, (sources, 2) fp64, and the sums of the stage's
    extras, (extras,) fp64."""

    def __init__(self, sources: int, stage: Stage, device: torch.device) -> None:
        self.sums = torch.zeros(sources, 2, dtype=torch.float64, device=device)
        self.names = stage.extras
        self.extras = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def add(self, losses: Losses) -> None:
        """Add a micro-batch."""
        values = torch.stack((losses.values.detach().double(), losses.counted.double()), dim=1)  # (n, 2)
        self.sums.index_add_(0, losses.source_ids, values)
        for place, name in enumerate(self.names):
            self.extras[place] += losses.extras[name].detach().double().mul(losses.counted).sum()

    def totals(self) -> Tensor:
        """(2,) fp64: the sum of losses in nats and the supervised tokens so far, of all sources, on this rank."""
        return self.sums.sum(dim=0)

    def over_all_ranks(self) -> list[tuple[float, int]]:
        """(sum of losses in nats, supervised tokens) of each source over all ranks. Waits for the device."""
        return [(loss, int(count)) for loss, count in all_reduce_sum(self.sums.clone()).tolist()]

    def extras_over_all_ranks(self) -> dict[str, float]:
        """Sum of each of the stage's extras over all ranks. Waits for the device."""
        if not self.names:
            return {}
        return dict(zip(self.names, all_reduce_sum(self.extras.clone()).tolist(), strict=True))


@torch.no_grad()
def heldout_losses(
    stage: Stage, model: Network, batches: list[Batch], sources: int, device: torch.device
) -> SourceLosses:
    """The losses of this rank's `batches`."""
    model.eval()
    losses = SourceLosses(sources, stage, device)
    for batch in batches:
        watchdog.mark("held-out data")
        losses.add(stage.losses(model, batch.to(device), grad_scale=None))
    model.train()
    watchdog.mark("held-out losses")
    return losses
