"""The two exchanges of ZeRO-1, by bucket: gradients to the rank that updates them, parameters to all.

Ranks are divided into groups of neighbours that share one copy of the optimizer state (`shard_group`; by default all
ranks are one group). Gradients are exchanged within a group first and then, as sums, among the ranks that hold the same
slice in other groups; parameters travel within a group only.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindllm_engine.distributed.process_group import World

# torch 2.13 renames these two.
reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class ShardGroups:
    """This rank among those it exchanges with.

    Attributes:
        shards: ranks of a group, which share one copy of the optimizer state.
        shard: position in the group.
        replicas: groups.
        within: this rank's group; None stands for all ranks.
        across: the ranks with the same `shard` in all groups; None where there is one group.
    """

    shards: int
    shard: int
    replicas: int
    within: dist.ProcessGroup | None
    across: dist.ProcessGroup | None


def make_shard_groups(world: World, shard_group: int | None) -> ShardGroups:
    """Divide the ranks; all of them must call this alike."""
    shards = shard_group or world.world_size
    replicas, shard = world.world_size // shards, world.rank % shards
    within = across = None
    if replicas > 1:
        for first in range(0, world.world_size, shards):
            group = dist.new_group(list(range(first, first + shards)))
            if first <= world.rank < first + shards:
                within = group
        for position in range(shards):
            group = dist.new_group(list(range(position, world.world_size, shards)))
            if position == shard:
                across = group
    return ShardGroups(shards, shard, replicas, within, across)


class Reduction:
    """The reduce-scatter of one bucket, begun when made: afterwards this rank's slice of it holds the sum over ranks.

    Sends to each other rank of the group its slice in the wire dtype, (shards - 1) / shards of the bucket in all, and
    sums in fp32 in the order of ranks. NCCL does this by itself where the wire is fp32. Gloo's own reduce-scatter would
    send twice as much (it is an all-reduce), and NCCL's in bf16 would round after every rank.

    With several groups, an all-reduce of the slice in fp32 among them follows.
    """

    def __init__(self, grads: Tensor, own: Tensor, wire: torch.dtype, groups: ShardGroups) -> None:
        self.own = own
        self.groups = groups
        self.received: Tensor | None = None
        self.work: Any = None
        if groups.shards == 1:
            self.work = self.reduce_across()
        elif grads.device.type != "cpu" and wire == torch.float32:
            self.work = reduce_scatter(own, grads, group=groups.within, async_op=True)
        else:
            sent = grads.to(wire)
            self.received = torch.empty_like(sent)
            self.work = dist.all_to_all_single(self.received, sent, group=groups.within, async_op=True)

    def reduce_across(self) -> Any:
        """Begin the sum over groups; None where there is one."""
        if self.groups.replicas == 1:
            return None
        return dist.all_reduce(self.own, group=self.groups.across, async_op=True)

    def finish_within(self) -> None:
        """Wait for the group, and begin the sum over groups."""
        if self.groups.shards == 1:
            return
        self.work.wait()
        if self.received is not None:
            sum_rows(self.received.view(self.groups.shards, -1), self.own)
            self.received = None
        self.work = self.reduce_across()

    def finish(self) -> None:
        """Wait for the sum over groups. Comes after `finish_within`."""
        if self.work is not None:
            self.work.wait()


def sum_rows(rows: Tensor, out: Tensor) -> None:
    """Sum `rows` (n, elements), fp32 or bf16, into `out` (elements,) fp32, row after row.

    torch's sum with another dtype, and its addition of bf16 to fp32, are ten times slower on a CPU.
    """
    if rows.device.type != "cpu":
        torch.sum(rows, dim=0, dtype=torch.float32, out=out)
        return
    out.copy_(rows[0])
    for row in rows[1:]:
        out.add_(row.float())


def begin_all_gather(params: Tensor, own: Tensor, groups: ShardGroups) -> Any:
    """Begin to collect a bucket's parameters from the ranks of the group, each its slice, in place. What is returned
    has a `wait`; it is None where the rank is alone."""
    return all_gather(params, own, group=groups.within, async_op=True) if groups.shards > 1 else None
