"""The two exchanges of ZeRO-1, by bucket: gradients to the rank that updates them, parameters to all.

Ranks are divided into groups of neighbours that share one copy of the optimizer state (`shard_group`; by default all
ranks are one group). Gradients are exchanged within a group first and then, as sums, among the ranks that hold the same
slice in other groups; parameters travel within a group only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from mindllm_engine.distributed.process_group import World, any_rank, value_of_rank_0

# torch 2.13 renames these two.
reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


# None stands for all ranks.
Group = dist.ProcessGroup | None


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


class Exchange:
    """What this rank sends to each other rank of a group, and receives from it.

    By gloo as messages between pairs, which cost a third of the time of its collectives, and of their work on the CPU.
    An exchange that is dropped before anyone has waited for it goes on: of a message that arrives where its buffer is
    gone, gloo would hold up all that follows.
    """

    under_way: ClassVar[set["Exchange"]] = set()

    def __init__(self) -> None:
        self.works: list[Any] = []
        self.kept: list[Tensor] = []
        self.under_way.add(self)

    def send_rows(self, rows: Tensor, received: Tensor, wire: torch.dtype, mine: int, group: Group) -> None:
        """Send `rows[p]` (ranks, ...) fp32 to rank p in the wire's dtype; `received` (ranks - 1, elements) holds what
        the others have sent, in their order."""
        others = [*range(mine), *range(mine + 1, rows.shape[0])]
        if rows.device.type == "cpu":
            packed = [rows[other].to(wire).contiguous() for other in others]
            self.send_pairs([row.view(-1) for row in packed], list(received), others, group)
            return
        sent = torch.empty((len(others), *rows.shape[1:]), dtype=wire, device=rows.device)
        sent[:mine].copy_(rows[:mine])
        sent[mine:].copy_(rows[mine + 1 :])
        splits = [received.shape[1]] * rows.shape[0]
        splits[mine] = 0
        self.kept = [sent]
        work = dist.all_to_all_single(received.view(-1), sent.view(-1), splits, splits, group=group, async_op=True)
        self.works.append(work)

    def send_pairs(self, sent: list[Tensor], received: list[Tensor], others: list[int], group: Group) -> None:
        """Send each of `others` (ranks in the group) a tensor, and receive one from it. Messages between two ranks
        arrive in the order in which both ask for them."""
        self.kept += [*sent, *received]
        for ours, theirs, other in zip(sent, received, others, strict=True):
            self.works.append(dist.isend(ours, group=group, group_dst=other))
            self.works.append(dist.irecv(theirs, group=group, group_src=other))

    def wait(self) -> None:
        """Wait for all of it (on a GPU: let the current stream wait)."""
        for work in self.works:
            work.wait()
        self.works, self.kept = [], []
        self.under_way.discard(self)


class Reduction:
    """The reduce-scatter of one bucket, begun when made: afterwards this rank's slice of it holds the sum over ranks.

    Each rank sends the others their slices in the wire's dtype, (shards - 1) / shards of the bucket in all, and adds
    what it receives to its own in fp32, in the order of ranks. NCCL does as much by itself where the wire is fp32.
    Gloo's own reduce-scatter would send twice as much (it is an all-reduce), and NCCL's in bf16 would round after every
    rank.

    Where the group spans nodes, this is done twice: among the ranks of a node first, each of which then holds a sum of
    1 / node_size of the bucket, and then, with that, between nodes. Each network card so carries 1 / node_size of what
    it would if every rank sent its slice to every other.

    With several groups, an all-reduce of the slice in fp32 among them follows.
    """

    def __init__(self, grads: Tensor, own: Tensor, wire: torch.dtype, groups: ShardGroups) -> None:
        self.own = own
        self.wire = wire
        self.groups = groups
        self.work: Any = None
        if groups.shards == 1:
            self.stages = [self.reduce_across]
        elif grads.device.type != "cpu" and wire == torch.float32:
            self.work = reduce_scatter(own, grads, group=groups.within, async_op=True)
            self.stages = [self.reduce_across]
        elif groups.node_size == groups.shards:
            self.exchange(grads.view(groups.shards, -1), groups.shard, groups.within)
            self.stages = [self.sum_own, self.reduce_across]
        else:
            # A slice for each rank, in the order of nodes and then of ranks on them: for each rank of this node, those
            # of the ranks in its place on all nodes.
            slices = grads.view(-1, groups.node_size, own.numel()).transpose(0, 1)
            place = groups.shard % groups.node_size
            self.node_sums = slices[place]  # (nodes, slice), this rank's own part of them so far
            self.exchange(slices, place, groups.node)
            self.stages = [self.sum_node, self.sum_own, self.reduce_across]

    def exchange(self, rows: Tensor, mine: int, group: Group) -> None:
        """Begin to send each other rank of a group its row, and to receive this rank's from each."""
        shape = (rows.shape[0] - 1, rows[0].numel())
        self.received = torch.empty(shape, dtype=self.wire, device=rows.device)
        self.work = Exchange()
        self.work.send_rows(rows, self.received, self.wire, mine, group)

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
        sums = self.node_sums.contiguous()
        add_rows(sums.view(-1), self.received)
        node = self.groups.shard // self.groups.node_size
        self.own.copy_(sums[node])
        self.exchange(sums, node, self.groups.between_nodes)

    def sum_own(self) -> None:
        """Sum what has come for this rank's slice."""
        add_rows(self.own, self.received)
        del self.received

    def reduce_across(self) -> None:
        """Begin the sum over groups, where there are several."""
        if self.groups.replicas > 1:
            self.work = dist.all_reduce(self.own, group=self.groups.across, async_op=True)


def add_rows(total: Tensor, rows: Tensor) -> None:
    """Add `rows` (n, elements), fp32 or bf16, to `total` (elements,) fp32.

    torch's sum with another dtype, and its addition of bf16 to fp32, are ten times slower on a CPU.
    """
    if rows.device.type != "cpu":
        total.add_(rows.sum(dim=0, dtype=torch.float32))
        return
    for row in rows:
        total.add_(row.float())


def begin_all_gather(params: Tensor, own: Tensor, groups: ShardGroups) -> Any:
    """Begin to collect a bucket's parameters from the ranks of the group, each its slice, in place. What is returned
    has a `wait`; it is None where the rank is alone."""
    if groups.shards == 1:
        return None
    if params.device.type != "cpu":
        return all_gather(params, own, group=groups.within, async_op=True)
    slices = params.view(groups.shards, -1)
    others = [shard for shard in range(groups.shards) if shard != groups.shard]
    exchange = Exchange()
    exchange.send_pairs([own] * len(others), [slices[other] for other in others], others, groups.within)
    return exchange
