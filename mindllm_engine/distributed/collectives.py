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

from mindllm_engine.distributed.process_group import World, any_rank, value_of_rank_0

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
        node_size: ranks of the group on a node, where it spans several nodes of as many each; else all of them.
        node: those; None where it is `within`.
        between_nodes: the ranks of the group with the same position on their nodes; None where there is one node.
    """

    shards: int
    shard: int
    replicas: int
    within: dist.ProcessGroup | None
    across: dist.ProcessGroup | None
    node_size: int
    node: dist.ProcessGroup | None
    between_nodes: dist.ProcessGroup | None


def make_shard_groups(world: World, shard_group: int | None) -> ShardGroups:
    """Divide the ranks; all of them must call this alike."""
    shards = shard_group or world.world_size
    replicas, shard = world.world_size // shards, world.rank % shards
    firsts = range(0, world.world_size, shards)
    within = across = node = between_nodes = None
    if replicas > 1:
        within = join_group(world, [range(first, first + shards) for first in firsts])
        across = join_group(world, [range(position, world.world_size, shards) for position in range(shards)])
    node_size = node_size_of(world)
    if shards <= node_size or shards % node_size or node_size == 1:
        node_size = shards
    else:
        nodes = [range(first, first + node_size) for first in range(0, world.world_size, node_size)]
        node = join_group(world, nodes)
        strides = [range(f + p, f + shards, node_size) for f in firsts for p in range(node_size)]
        between_nodes = join_group(world, strides)
    return ShardGroups(shards, shard, replicas, within, across, node_size, node, between_nodes)


def join_group(world: World, groups: list[range]) -> dist.ProcessGroup | None:
    """Make all of these groups, as all ranks must, and return the one that this rank is in."""
    made = [(world.rank in members, dist.new_group(list(members))) for members in groups]
    return next(group for is_ours, group in made if is_ours)


def node_size_of(world: World) -> int:
    """Ranks of a node, where all nodes have as many and number them one after the other; else 1."""
    size = value_of_rank_0(world.local_world_size)
    is_regular = world.local_world_size == size and world.local_rank == world.rank % size
    return 1 if any_rank(not is_regular) else size


class Reduction:
    """The reduce-scatter of one bucket, begun when made: afterwards this rank's slice of it holds the sum over ranks.

    Each rank sends the others their slices in the wire dtype, (shards - 1) / shards of the bucket in all, and sums what
    it receives in fp32 in the order of ranks. NCCL does as much by itself where the wire is fp32. Gloo's own
    reduce-scatter would send twice as much (it is an all-reduce), and NCCL's in bf16 would round after every rank.

    Where the group spans nodes, this is done twice: among the ranks of a node first, each of which then holds a sum of
    1 / node_size of the bucket, and then, with that, between nodes. Each network card so carries 1 / node_size of what
    it would if every rank sent its slice to every other.

    With several groups, an all-reduce of the slice in fp32 among them follows.
    """

    def __init__(self, grads: Tensor, own: Tensor, wire: torch.dtype, groups: ShardGroups) -> None:
        self.own = own
        self.wire = wire
        self.groups = groups
        self.received: Tensor | None = None
        self.work: Any = None
        if groups.shards == 1:
            self.stages = [self.reduce_across]
        elif grads.device.type != "cpu" and wire == torch.float32:
            self.work = reduce_scatter(own, grads, group=groups.within, async_op=True)
            self.stages = [self.reduce_across]
        elif groups.node_size == groups.shards:
            self.exchange(grads.to(wire), groups.within)
            self.stages = [self.sum_own, self.reduce_across]
        else:
            # A slice for each rank, in the order of nodes and then of ranks on them: for each rank of this node, those
            # of the ranks in its place on all nodes.
            slices = grads.view(-1, groups.node_size, own.numel()).transpose(0, 1)
            self.exchange(slices.to(wire, memory_format=torch.contiguous_format, copy=True), groups.node)
            self.stages = [self.sum_node, self.sum_own, self.reduce_across]

    def exchange(self, sent: Tensor, group: dist.ProcessGroup | None) -> None:
        """Begin to send each rank of a group its part, in order, and to receive as much from each."""
        self.received = torch.empty_like(sent)
        self.work = dist.all_to_all_single(self.received, sent.contiguous(), group=group, async_op=True)

    def advance(self) -> bool:
        """Wait for what is under way and begin what follows; returns whether that was the last."""
        if self.work is not None:
            self.work.wait()
            self.work = None
        if self.stages:
            self.stages.pop(0)()
        return self.work is None and not self.stages

    def sum_node(self) -> None:
        """Sum over the node, and exchange the sums between nodes."""
        assert self.received is not None
        rows = self.received.view(self.groups.node_size, -1)
        total = torch.empty(rows.shape[1], dtype=torch.float32, device=rows.device)
        sum_rows(rows, total)
        self.exchange(total.to(self.wire), self.groups.between_nodes)

    def sum_own(self) -> None:
        """Sum what has come for this rank's slice."""
        assert self.received is not None
        sum_rows(self.received.view(-1, self.own.numel()), self.own)
        self.received = None

    def reduce_across(self) -> None:
        """Begin the sum over groups, where there are several."""
        if self.groups.replicas > 1:
            self.work = dist.all_reduce(self.own, group=self.groups.across, async_op=True)


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
