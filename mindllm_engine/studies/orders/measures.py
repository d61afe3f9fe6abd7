"""What learning curves say of an order of data: jumps of the training loss, forgetting. Arithmetic, apart from runs."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from mindllm_engine.data.plan import Plan

# Steps on either side of a change of category over which the training loss is averaged.
SPAN = 5


def category_changes(plan: Plan, global_batch_size: int) -> list[tuple[int, str]]:
    """The step after which each category of the blocked blocks begins, and its name, in their order."""
    begins = []
    for block in plan.blocks:
        sample = block.first_sample
        if block.order == "blocked":
            for members in block.categories:
                begins.append((sample // global_batch_size, plan.sources[members[0]].category))
                sample += sum(block.quotas[source] for source in members)
    return begins


def mean_jump(losses: Mapping[int, float], changes: Sequence[int]) -> float | None:
    """By how much the training loss differs on the two sides of a change, up or down, averaged over the changes.

    Args:
        losses: step -> training loss, nats a token; every step has one.
        changes: the last step before each.

    Returns:
        None where no change has SPAN steps on either side.
    """
    jumps = []
    for change in changes:
        before = [losses[step] for step in range(change - SPAN + 1, change + 1) if step in losses]
        after = [losses[step] for step in range(change + 1, change + SPAN + 1) if step in losses]
        if len(before) == len(after) == SPAN:
            jumps.append(abs(fmean(after) - fmean(before)))
    return fmean(jumps) if jumps else None


def rise_from_lowest(curve: Sequence[float]) -> float:
    """What has been forgotten: how far the last loss lies above the lowest, in the curve's unit; 0 at least."""
    return curve[-1] - min(curve)


def forgetting(curves: Mapping[str, Sequence[float]], earlier: Sequence[str]) -> float:
    """The mean rise of the held-out losses of categories that others came after."""
    return fmean(rise_from_lowest(curves[category]) for category in earlier)


def mean_curves(records: Sequence[Mapping[str, float]], groups: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Held-out bits per byte of each group of sources at each evaluation: the mean over its sources."""
    return {
        group: [fmean(record[f"heldout_bpb/{name}"] for name in names) for record in records]
        for group, names in groups.items()
    }
