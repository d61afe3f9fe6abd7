"""How long a collective takes: latency of its hops plus bytes over bandwidth (the alpha-beta model).

Ranks fill nodes in order. A ring over n ranks on k nodes makes n - 1 hops, k - 1 of them between nodes. It sends the
bytes through all network cards of a node at once, since NCCL makes a ring for each: a node's boundary passes what one
rank sends, split over `gpus_per_node` cards. An all-to-all uses its rank's own card only, for all that leaves the node,
but its hops do not wait for each other.

What it leaves out: traffic of other jobs, switches above the first, NCCL's choice of protocols by size (its "simple"
one is taken), and that collectives slow the computation beside them.
"""

import math
from dataclasses import dataclass

from mindllm_engine.distributed.hardware import Hardware

# Messages of an all-to-all that NCCL keeps in flight beside each other (its channels).
PARALLEL_MESSAGES = 32


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: `nodes` nodes with `per_node` ranks of the group on each."""

    nodes: int
    per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node


def neighbours(ranks: int, gpus_per_node: int) -> Group:
    """A group of consecutive ranks. One that does not fill its last node is taken to fill it."""
    return Group(1, ranks) if ranks <= gpus_per_node else Group(-(-ranks // gpus_per_node), gpus_per_node)


def strided(ranks: int, stride: int, gpus_per_node: int) -> Group:
    """A group of every `stride`-th rank."""
    per_node = min(ranks, max(1, gpus_per_node // stride))
    return Group(-(-ranks // per_node), per_node)


class Network:
    """Times of collectives over one kind of hardware, in seconds. A group of one rank takes none."""

    def __init__(self, hardware: Hardware) -> None:
        self.gpus_per_node = int(hardware.gpus_per_node.value)
        self.nvlink = hardware.nvlink_bandwidth.value * hardware.link_efficiency.value
        self.card = hardware.network_bandwidth.value * hardware.link_efficiency.value
        self.launch = hardware.launch_latency.value
        self.nvlink_hop = hardware.nvlink_latency.value
        self.network_hop = hardware.network_latency.value

    def ring(self, size: float, group: Group) -> float:
        """A reduce-scatter or all-gather of `size` bytes, all ranks' parts together."""
        if group.ranks == 1:
            return 0.0
        hops = (group.ranks - group.nodes) * self.nvlink_hop + (group.nodes - 1) * self.network_hop
        bandwidth = self.nvlink if group.nodes == 1 else min(self.nvlink, group.per_node * self.card)
        return self.launch + hops + size * (group.ranks - 1) / group.ranks / bandwidth

    def all_to_all(self, size: float, group: Group) -> float:
        """Each rank sends to each other its part of `size` bytes, which it holds in full."""
        if group.ranks == 1:
            return 0.0
        part = size / group.ranks
        inside, outside = (group.per_node - 1) * part, (group.ranks - group.per_node) * part
        rounds = -(-(group.ranks - 1) // PARALLEL_MESSAGES)
        hop = self.nvlink_hop if group.nodes == 1 else self.network_hop
        return self.launch + rounds * hop + max(inside / self.nvlink, outside / self.card)

    def all_reduce(self, size: float, group: Group) -> float:
        """A sum of `size` bytes that all ranks end up with: two rings, or two ways through a tree where that is less."""
        if group.ranks == 1:
            return 0.0
        depth = math.ceil(math.log2(group.nodes)) * self.network_hop
        depth += (group.per_node - 1) * self.nvlink_hop  # NCCL's trees are chains within a node
        bandwidth = self.nvlink if group.nodes == 1 else min(self.nvlink, group.per_node * self.card)
        tree = self.launch + 2 * depth + 2 * size / bandwidth
        return min(tree, 2 * self.ring(size, group) - self.launch)
