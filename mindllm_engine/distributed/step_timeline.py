"""One training step of a rank, played through event by event: what of the communication computation hides.

Two resources, each doing one thing at a time in the order in which it is asked: the GPU, which computes, and the
network. The course is `zero1.Zero1`'s:

    last backward   a bucket's gradients are complete -> pack it, put its reduction on the network. The GPU waits for a
                    reduction where MAX_IN_FLIGHT later ones are asked for, and sums what arrived
    step            wait for all sums; a scalar; bucket by bucket AdamW, and the bucket's all-gather on the network
    next forward    before a module runs, wait for the buckets that hold its parameters
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mindllm_engine.distributed.compute_model import MicroBatchSeconds, module_of
from mindllm_engine.distributed.layout import Layout
from mindllm_engine.distributed.zero1 import MAX_IN_FLIGHT


@dataclass(frozen=True)
class BucketSeconds:
    """What one bucket costs.

    Attributes:
        pack, sum: of the GPU, before its gradients leave and after they have arrived.
        within, across: of the network, for the reduction in a shard group (on the node alone where it spans nodes) and
            for what follows: between nodes and among groups.
        update: of the GPU, AdamW on this rank's slice.
        gather: of the network, for the new parameters.
    """

    pack: float
    within: float
    sum: float
    across: float
    update: float
    gather: float


@dataclass(frozen=True)
class StepSeconds:
    """A step by what the GPU does or waits for, in seconds."""

    forward_backward: float
    pack_and_sum: float
    wait_for_gradients: float
    wait_for_scalars: float
    update: float
    wait_for_parameters: float

    @property
    def total(self) -> float:
        return (
            self.forward_backward
            + self.pack_and_sum
            + self.wait_for_gradients
            + self.wait_for_scalars
            + self.update
            + self.wait_for_parameters
        )

    @property
    def exposed(self) -> float:
        """All waiting for the network."""
        return self.wait_for_gradients + self.wait_for_scalars + self.wait_for_parameters


class Rank:
    """The GPU and the network of a rank. Times are seconds from the start of the last backward."""

    def __init__(self) -> None:
        self.now = 0.0
        self.network_free = 0.0
        self.waited = 0.0

    def compute(self, seconds: float) -> None:
        """The GPU is busy."""
        self.now += seconds

    def send(self, seconds: float) -> float:
        """Ask the network for something; returns when it will be done."""
        self.network_free = max(self.now, self.network_free) + seconds
        return self.network_free

    def wait(self, until: float) -> None:
        """The GPU waits for the network."""
        self.waited += max(0.0, until - self.now)
        self.now = max(self.now, until)

    def waited_since(self, before: float) -> float:
        return self.waited - before


def simulate_step(
    compute: MicroBatchSeconds,
    grad_accum_steps: int,
    layout: Layout,
    forward_order: Sequence[str],
    costs: Sequence[BucketSeconds],
    scalar: float,
    other_update: float,
) -> StepSeconds:
    """Times of a step in the middle of a run.

    Args:
        compute: of one micro-batch.
        forward_order: parameters as forward needs them.
        costs: of each bucket.
        scalar: the network's time for the all-reduce of a few numbers.
        other_update: the GPU's time for norms and for clearing the gradients.
    """
    rank = Rank()
    reduce_gradients(rank, compute, layout, costs)
    waited_for_gradients = rank.waited
    rank.wait(rank.send(scalar))
    waited_for_scalars = rank.waited_since(waited_for_gradients)
    before = rank.waited
    rank.compute(other_update)
    update_and_forward(rank, compute, layout, forward_order, costs)
    one = compute.forward_total + compute.backward_total
    return StepSeconds(
        forward_backward=grad_accum_steps * one,
        pack_and_sum=sum(cost.pack + cost.sum for cost in costs),
        wait_for_gradients=waited_for_gradients,
        wait_for_scalars=waited_for_scalars,
        update=other_update + sum(cost.update for cost in costs),
        wait_for_parameters=rank.waited_since(before),
    )


def reduce_gradients(rank: Rank, compute: MicroBatchSeconds, layout: Layout, costs: Sequence[BucketSeconds]) -> None:
    """The last micro-batch's backward, until all sums are there."""
    unfinished = [set(bucket.names) for bucket in layout.buckets]
    within: list[float] = []  # when each bucket's reduction in the group is done
    across: list[float] = []

    def finish_within(index: int) -> None:
        rank.wait(within[index])
        rank.compute(costs[index].sum)
        if costs[index].across:
            across.append(rank.send(costs[index].across))

    for name, seconds in compute.backward:
        rank.compute(seconds)
        for names in unfinished:
            names.discard(name)
        while len(within) < len(unfinished) and not unfinished[len(within)]:
            index = len(within)
            if index >= MAX_IN_FLIGHT:
                finish_within(index - MAX_IN_FLIGHT)
            rank.compute(costs[index].pack)
            within.append(rank.send(costs[index].within))
    for index in range(max(0, len(within) - MAX_IN_FLIGHT), len(within)):
        finish_within(index)
    for until in across:
        rank.wait(until)


def update_and_forward(
    rank: Rank,
    compute: MicroBatchSeconds,
    layout: Layout,
    forward_order: Sequence[str],
    costs: Sequence[BucketSeconds],
) -> None:
    """AdamW bucket by bucket, and the first micro-batch's forward, which waits for parameters."""
    buckets_of: dict[str, list[int]] = {}
    for bucket in layout.buckets:
        for name in bucket.names:
            buckets_of.setdefault(name, []).append(bucket.index)
    arrived: dict[int, float] = {}
    for index in dict.fromkeys(index for name in forward_order for index in buckets_of[name]):
        rank.compute(costs[index].update)
        arrived[index] = rank.send(costs[index].gather)
    needed: dict[str, list[int]] = {}
    for name in forward_order:
        needed.setdefault(module_of(name), []).extend(buckets_of[name])
    for module, seconds in compute.forward:
        for index in needed.get(module, ()):
            rank.wait(arrived[index])
        rank.compute(seconds)
