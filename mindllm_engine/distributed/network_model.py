"""How long a collective takes: latency of its hops plus bytes over bandwidth (the alpha-beta model).

Ranks fill nodes in order. A ring over n ranks on k nodes makes n - 1 hops, k - 1 of them between nodes. It sends the
bytes through all network cards of a node at once, since NCCL makes a ring for each: a node's boundary passes what one
rank sends, split over `gpus_per_node` cards. An all-to-all uses its rank's own card only, for all that leaves the node,
but its hops do not wait for each other.

Of NCCL's protocols "simple" has the bandwidth and LL128 the shorter hops; the quicker one is taken, as NCCL does.
What it leaves out: traffic of other jobs, switches above the first, NVLink SHARP, and that collectives slow the
computation beside them.
"""

import math
from dataclasses import dataclass

from mindllm_engine.distributed.hardware import Hardware

# Messages of an all-to-all that NCCL keeps in flight beside each other (its channels).
PARALLEL_MESSAGES = 32
# Of NCCL's LL128 protocol, as its own model has it.
LL128_BANDWIDTH = 0.92


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


def ranks_on_node(shards: int, gpus_per_node: int) -> int:
    """Ranks of a shard group that exchange gradients with each other before nodes do: all of them where the group does
    not fill several nodes (`collectives.make_shard_groups`)."""
    return gpus_per_node if shards > gpus_per_node > 1 and shards % gpus_per_node == 0 else shards


@dataclass(frozen=True)
class Protocol:
    """Seconds of a hop within a node and between nodes, and the share of the bandwidth that carries data."""

    nvlink_hop: float
    network_hop: float
    bandwidth: float


class Network:
    """Times of collectives over one kind of hardware, in seconds. A group of one rank takes none."""

    def __init__(self, hardware: Hardware) -> None:
        self.gpus_per_node = int(hardware.gpus_per_node.value)
        self.nvlink = hardware.nvlink_bandwidth.value * hardware.link_efficiency.value
        self.card = hardware.network_bandwidth.value * hardware.link_efficiency.value
        self.launch = hardware.launch_latency.value
        self.simple = Protocol(hardware.nvlink_latency.value, hardware.network_latency.value, 1.0)
        self.ll128 = Protocol(
            hardware.nvlink_latency_ll128.value, hardware.network_latency_ll128.value, LL128_BANDWIDTH
        )

    def bandwidth(self, group: Group) -> float:
        """What a rank of a ring sends a second, over all rings: bounded by NVLink, and by the cards of its node."""
        return self.nvlink if group.nodes == 1 else min(self.nvlink, group.per_node * self.card)

    def ring(self, size: float, group: Group) -> float:
        """A reduce-scatter or all-gather of `size` bytes, all ranks' parts together."""
        if group.ranks == 1:
            return 0.0
        data = size * (group.ranks - 1) / group.ranks / self.bandwidth(group)
        return self.launch + min(
            (group.ranks - group.nodes) * protocol.nvlink_hop
            + (group.nodes - 1) * protocol.network_hop
            + data / protocol.bandwidth
            for protocol in (self.simple, self.ll128)
        )

    def all_to_all(self, size: float, group: Group) -> float:
        """Each rank sends to each other its part of `size` bytes, which it holds in full."""
        if group.ranks == 1:
            return 0.0
        part = size / group.ranks
        inside, outside = (group.per_node - 1) * part, (group.ranks - group.per_node) * part
        rounds = -(-(group.ranks - 1) // PARALLEL_MESSAGES)
        hop = self.simple.nvlink_hop if group.nodes == 1 else self.simple.network_hop
        return self.launch + rounds * hop + max(inside / self.nvlink, outside / self.card)

    def all_reduce(self, size: float, group: Group) -> float:
        """A sum of `size` bytes that all ranks end up with: two rings, or a tree up and down where that is quicker."""
        if group.ranks == 1:
            return 0.0
        data = 2 * size / self.bandwidth(group)
        depth = math.ceil(math.log2(group.nodes))
        tree = self.launch + min(
            # NCCL's trees are chains within a node.
            2 * ((group.per_node - 1) * protocol.nvlink_hop + depth * protocol.network_hop) + data / protocol.bandwidth
            for protocol in (self.simple, self.ll128)
        )
        return min(tree, 2 * self.ring(size, group) - self.launch)
