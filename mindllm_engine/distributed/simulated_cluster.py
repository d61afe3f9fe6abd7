"""A run on a cluster that is not there: its layout, messages, memory and step time, by rank 0 of a fake process group.

The network is built on the meta device, its execution order recorded, and `zero1.Zero1` itself takes a step, over
PyTorch's fake process group of any size, where every collective is counted and none is sent. Bytes follow from the
layout (`memory_plan`); times from a model of the GPU (`compute_model`), of the network (`network_model`) and of the
step's course (`step_timeline`), whose constants are inputs (`hardware`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from mindllm_engine.distributed.backend import DistributedConfig, is_not_finite
from mindllm_engine.distributed.compute_model import (
    MicroBatchSeconds,
    micro_batch_seconds,
    update_seconds,
)
from mindllm_engine.distributed.execution_order import ExecutionOrder, record_execution_order
from mindllm_engine.distributed.hardware import Hardware
from mindllm_engine.distributed.layout import Bucket, Layout
from mindllm_engine.distributed.memory_plan import MAIN_GRADIENT_BYTES, MemoryBytes, memory_bytes
from mindllm_engine.distributed.network_model import Group, neighbours, ranks_on_node, strided
from mindllm_engine.distributed.network_model import Network as Links
from mindllm_engine.distributed.process_group import World
from mindllm_engine.distributed.step_timeline import BucketSeconds, StepSeconds, simulate_step
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.backend import kernels_on_meta
from mindllm_engine.models import Network, NetworkConfig
from mindllm_engine.models.activation_memory import ActivationCheckpointing
from mindllm_engine.optim.optimizer import OptimConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Enough to run the network once on the meta device; the order does not depend on it.
PROBE_TOKENS = 8
SCALAR_BYTES = 3 * 8
# Buckets that `quicker_settings` tries, in those of the run.
LARGER_BUCKETS = 4
MODES: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")

MessageKind = Literal[
    "exchange of gradients", "exchange between nodes", "sum among shard groups", "all-gather of parameters", "scalars"
]


@dataclass(frozen=True)
class Workload:
    """What a run computes, whatever it runs on."""

    model: NetworkConfig
    seq_len: int
    global_batch_size: int
    micro_batch_size: int
    precision: Literal["bf16", "fp32"] = "bf16"
    optim: OptimConfig = field(default_factory=OptimConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    checkpointing: ActivationCheckpointing = "none"

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        self.model.validate()
        self.optim.validate()
        for name in ("seq_len", "global_batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.seq_len > self.model.max_seq_len:
            raise ConfigError(
                f"seq_len: {self.seq_len} is longer than the model's max_seq_len = {self.model.max_seq_len}"
            )
        if self.optim.master == "bf16_and_bits" and self.precision != "bf16":
            raise ConfigError(f"optim.master: bf16_and_bits needs precision bf16, got {self.precision}")

    @property
    def wire(self) -> torch.dtype:
        """The dtype in which gradients travel."""
        return DTYPES[self.precision if self.distributed.wire == "auto" else self.distributed.wire]


@dataclass(frozen=True)
class Message:
    """A collective of one rank.

    Attributes:
        size: bytes of the whole bucket, or of what is summed.
        ranks: of the group.
    """

    kind: MessageKind
    size: int
    ranks: int

    @property
    def sent(self) -> float:
        """Bytes that a rank sends at least: what others need of it; for a sum, twice that."""
        passes = 2 if self.kind in ("sum among shard groups", "scalars") else 1
        return passes * self.size * (self.ranks - 1) / self.ranks


@dataclass(frozen=True)
class Plan:
    """A run on `gpus` GPUs.

    Attributes:
        workload: as it would run there; `notes` say where that is not what was asked for.
        messages: of one step of a rank, in their order.
        compute: times of a micro-batch.
        step: times of a step.
    """

    workload: Workload
    hardware: Hardware
    gpus: int
    notes: tuple[str, ...]
    layout: Layout
    order: ExecutionOrder
    messages: tuple[Message, ...]
    memory: MemoryBytes
    compute: MicroBatchSeconds
    step: StepSeconds
    flops_per_token: int

    @property
    def grad_accum_steps(self) -> int:
        return self.workload.global_batch_size // (self.workload.micro_batch_size * self.gpus)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.hardware.memory_bytes.value

    @property
    def tokens_per_second(self) -> float:
        """Of the whole cluster."""
        return self.workload.global_batch_size * self.workload.seq_len / self.step.total

    @property
    def mfu(self) -> float:
        """Model FLOPs of a second over the peak of all GPUs."""
        return self.tokens_per_second * self.flops_per_token / self.gpus / self.hardware.peak_flops.value

    def days(self, tokens: float) -> float:
        return tokens / self.tokens_per_second / 86400

    def dollars(self, tokens: float) -> float:
        return self.days(tokens) * 24 * self.gpus * self.hardware.dollars_per_gpu_hour.value


def plan_run(workload: Workload, hardware: Hardware, gpus: int) -> Plan:
    """Plan a run whose micro-batch is cut down, or whose global batch is rounded, to what `gpus` GPUs can share.

    Raises:
        ConfigError: an impossible number of GPUs or shard group.
    """
    if gpus < 1:
        raise ConfigError(f"gpus: {gpus} must be at least 1")
    workload.validate()
    hardware.validate()
    workload.distributed.validate(gpus)
    workload, notes = fit_batch(workload, gpus)
    model = workload.model.build(device="meta", dtype=DTYPES[workload.precision])
    flops_per_token = model.flops_per_token(workload.seq_len)
    order = record_order(model)
    # What is wanted of the network itself comes before ZeRO-1, which takes its parameters over.
    compute = micro_batch_seconds(
        model,
        order.forward,
        order.gradients,
        workload.micro_batch_size * workload.seq_len,
        workload.seq_len,
        hardware,
        workload.checkpointing,
    )
    layout, messages = take_step(model, order, workload, gpus, int(hardware.gpus_per_node.value))
    memory = memory_of(workload, layout, order, int(hardware.gpus_per_node.value))
    step = step_seconds(compute, layout, order, workload, hardware, gpus)
    return Plan(workload, hardware, gpus, notes, layout, order, messages, memory, compute, step, flops_per_token)


def fit_batch(workload: Workload, gpus: int) -> tuple[Workload, tuple[str, ...]]:
    """The workload with a batch that `gpus` GPUs can share, and what was changed."""
    asked, micro = workload.global_batch_size, workload.micro_batch_size
    notes = []
    batch = max(1, round(asked / gpus)) * gpus
    if batch != asked:
        notes.append(
            f"{gpus} GPUs cannot share a global batch of {asked}: planned with {batch}; nearest GPUs that can: "
            f"{', '.join(map(str, nearest_divisors(asked, gpus)))}"
        )
    share = batch // gpus
    fitting = max(size for size in range(1, micro + 1) if share % size == 0)
    if fitting != micro:
        notes.append(
            f"{share} samples a GPU are not a multiple of a micro-batch of {micro}: planned with {fitting}; a larger "
            f"one that divides: {next((size for size in range(micro + 1, share + 1) if share % size == 0), 'none')}"
        )
    return replace(workload, global_batch_size=batch, micro_batch_size=fitting), tuple(notes)


def check_micro_batch(workload: Workload, gpus: int) -> None:
    """For a micro-batch that somebody insists on.

    Raises:
        ConfigError: naming the nearest sizes, where the GPUs cannot share the global batch in such micro-batches.
    """
    micro, batch = workload.micro_batch_size, workload.global_batch_size
    if batch % (gpus * micro) == 0:
        return
    if batch % gpus == 0:
        sizes = nearest_divisors(batch // gpus, micro)
        advice = f"micro-batches that divide {batch // gpus} samples a GPU: {', '.join(map(str, sizes))}"
    else:
        advice = f"GPUs that share it: {', '.join(map(str, nearest_divisors(batch, gpus)))}"
    raise ConfigError(
        f"micro_batch_size: a global batch of {batch} is not a multiple of {gpus} GPUs x {micro}; {advice}"
    )


def nearest_divisors(number: int, wanted: int) -> list[int]:
    """The divisors of `number` next to `wanted`: the largest not above it, the smallest not below."""
    divisors = [size for size in range(1, number + 1) if number % size == 0]
    below = [size for size in divisors if size <= wanted]
    above = [size for size in divisors if size >= wanted]
    return sorted({*below[-1:], *above[:1]})


def record_order(model: Network) -> ExecutionOrder:
    """The order in which a network on the meta device uses its parameters and finishes their gradients."""
    with kernels_on_meta():
        return record_execution_order(model, lambda: probe_loss(model))


def probe_loss(model: Network) -> Tensor:
    """A forward over a few tokens that do not exist."""
    tokens = torch.zeros(PROBE_TOKENS, dtype=torch.int64, device="meta")
    cu_seqlens = torch.tensor([0, PROBE_TOKENS], dtype=torch.int32)  # read by attention, so on the host
    return model(tokens, tokens, cu_seqlens, targets=tokens).sum()


def take_step(
    model: Network, order: ExecutionOrder, workload: Workload, gpus: int, gpus_per_node: int
) -> tuple[Layout, tuple[Message, ...]]:
    """Let ZeRO-1 take over a network on the meta device and do one step as rank 0 of `gpus`; its layout, and every
    collective of the step and of the next forward."""
    world = World(0, gpus, 0, torch.device("meta"), min(gpus, gpus_per_node))
    with kernels_on_meta(), fake_process_group(gpus):
        zero1 = Zero1(model, world, workload.optim, workload.distributed, workload.wire, order)
        with CollectiveCounter() as counter:
            zero1.backward(probe_loss(model), last=True)
            zero1.step(1.0, PROBE_TOKENS, torch.zeros(2, dtype=torch.float64, device="meta"), is_not_finite)
            zero1.wait_for_parameters()
        between_nodes = zero1.groups.between_nodes
        other = None if between_nodes is None else between_nodes.group_name
        messages = [
            Message(kind_of(operator, size, group.group_name == other), whole(operator, size, group), group.size())
            for operator, size, group in counter.collectives
        ]
    return zero1.layout, tuple(messages)


def whole(operator: str, size: int, group: dist.ProcessGroup) -> int:
    """Bytes of the bucket that a collective of `size` bytes is for: an all-to-all leaves out what a rank keeps."""
    return size // (group.size() - 1) * group.size() if "alltoall" in operator else size


def kind_of(operator: str, size: int, is_between_nodes: bool) -> MessageKind:
    """What a collective of `size` bytes is for."""
    if is_between_nodes:
        return "exchange between nodes"
    if "alltoall" in operator or "reduce_scatter" in operator:
        return "exchange of gradients"
    if "allgather" in operator:
        return "all-gather of parameters"
    return "scalars" if size == SCALAR_BYTES else "sum among shard groups"


@contextmanager
def fake_process_group(ranks: int) -> Iterator[None]:
    """A process group of which this process is rank 0 and in which nothing is sent; none for a single rank.

    Raises RuntimeError within a process that has a process group already.
    """
    if ranks == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class CollectiveCounter(TorchDispatchMode):
    """Notes each collective issued while it is entered: its name, the bytes of its largest tensor, and its group."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[tuple[str, int, dist.ProcessGroup]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            sizes = [
                x.numel() * x.element_size() for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, Tensor)
            ]
            names = [argument.name for argument in func._schema.arguments]
            group = dist.ProcessGroup.unbox(args[names.index("process_group")])
            self.collectives.append((func._schema.name, max(sizes), group))
        return func(*args, **(kwargs or {}))


def memory_of(workload: Workload, layout: Layout, order: ExecutionOrder, gpus_per_node: int) -> MemoryBytes:
    """Bytes of a rank on a GPU."""
    return memory_bytes(
        workload.model,
        layout,
        order.gradients,
        workload.micro_batch_size * workload.seq_len,
        itemsize=DTYPES[workload.precision].itemsize,
        wire_itemsize=workload.wire.itemsize,
        node_size=ranks_on_node(layout.shards, gpus_per_node),
        master=workload.optim.master,
        checkpointing=workload.checkpointing,
    )


def memory_of_mode(plan: Plan, mode: ActivationCheckpointing) -> MemoryBytes:
    """Bytes of a rank with another activation checkpointing."""
    workload = replace(plan.workload, checkpointing=mode)
    return memory_of(workload, plan.layout, plan.order, int(plan.hardware.gpus_per_node.value))


def step_seconds(
    compute: MicroBatchSeconds,
    layout: Layout,
    order: ExecutionOrder,
    workload: Workload,
    hardware: Hardware,
    gpus: int,
) -> StepSeconds:
    """Play a step through."""
    links = Links(hardware)
    bandwidth = hardware.memory_bandwidth.value * hardware.bandwidth_efficiency.value
    costs = [bucket_seconds(bucket, layout.shards, workload, links, hardware, gpus) for bucket in layout.buckets]
    # The norm reads this rank's slices of the gradients; all gradients are cleared.
    other_update = MAIN_GRADIENT_BYTES * (layout.shard_elements + layout.elements) / bandwidth
    scalar = links.all_reduce(SCALAR_BYTES, neighbours(gpus, links.gpus_per_node))
    accumulation = workload.global_batch_size // (workload.micro_batch_size * gpus)
    return simulate_step(compute, accumulation, layout, order.forward, costs, scalar, other_update)


def bucket_seconds(
    bucket: Bucket, shards: int, workload: Workload, links: Links, hardware: Hardware, gpus: int
) -> BucketSeconds:
    """What a bucket costs, by `collectives.Reduction` on CUDA: NCCL's reduce-scatter where the wire is fp32; else an
    all-to-all in the wire's dtype, packed before and summed after, on the node and then between nodes."""
    bandwidth = hardware.memory_bandwidth.value * hardware.bandwidth_efficiency.value
    elements = bucket.stop - bucket.start
    group = neighbours(shards, links.gpus_per_node)
    wire = workload.wire.itemsize
    pack = total = between_nodes = 0.0
    if shards == 1:
        within = 0.0
    elif wire == MAIN_GRADIENT_BYTES:
        within = links.ring(elements * wire, group)
    else:
        node_size = ranks_on_node(shards, links.gpus_per_node)
        has_levels = node_size < shards
        node = Group(1, node_size) if has_levels else group
        within = links.all_to_all(elements * wire, node)
        # Others' slices are read and packed; what comes for this rank's is added to them.
        part = elements / node.ranks
        pack = (elements - part) * (MAIN_GRADIENT_BYTES + wire) / bandwidth
        total = part * bytes_to_add(node.ranks, wire) / bandwidth
        if has_levels:  # the same with the sums of the node
            between_nodes = links.all_to_all(part * wire, Group(group.nodes, 1))
            total += part * (1 - 1 / group.nodes) * (MAIN_GRADIENT_BYTES + wire) / bandwidth
            total += part / group.nodes * bytes_to_add(group.nodes, wire) / bandwidth
    replicas = strided(gpus // shards, shards, links.gpus_per_node)
    return BucketSeconds(
        pack=pack,
        within=within,
        sum=total,
        across=between_nodes + links.all_reduce(bucket.slice_elements * MAIN_GRADIENT_BYTES, replicas),
        update=update_seconds(bucket.slice_elements, workload.optim.master, hardware),
        gather=links.ring(elements * DTYPES[workload.precision].itemsize, group),
    )


def bytes_to_add(ranks: int, wire: int) -> int:
    """Bytes an element that `collectives.add_rows` moves on a GPU: all rows in, their sum out; both in, the total."""
    return (ranks - 1) * wire + 4 * MAIN_GRADIENT_BYTES


def ways_to_fit(plan: Plan) -> list[str]:
    """Single changes of the run that would make it fit, as a user would write them."""
    workload = plan.workload
    micro = [size for size in range(1, workload.micro_batch_size) if workload.micro_batch_size % size == 0]
    changes: list[tuple[str, Workload]] = [
        (f"train.micro_batch_size {size}", replace(workload, micro_batch_size=size)) for size in micro[::-1]
    ]
    for mode in MODES[MODES.index(workload.checkpointing) + 1 :]:
        changes.append((f"train.activation_checkpointing {mode}", replace(workload, checkpointing=mode)))
    if workload.precision == "bf16" and workload.optim.master == "fp32":
        split = replace(workload.optim, master="bf16_and_bits")
        changes.append(("optim.master bf16_and_bits", replace(workload, optim=split)))
    limit, gpus_per_node = plan.hardware.memory_bytes.value, int(plan.hardware.gpus_per_node.value)
    return [
        text for text, changed in changes if memory_of(changed, plan.layout, plan.order, gpus_per_node).peak <= limit
    ]


def quicker_settings(plan: Plan) -> list[tuple[str, Plan]]:
    """Settings of `distributed` with which the same run would be over a hundredth quicker, the quickest first."""
    config, nodes = plan.workload.distributed, plan.gpus / plan.hardware.gpus_per_node.value
    group = int(plan.hardware.gpus_per_node.value)
    groups = [config.shard_group] if nodes <= 1 or plan.gpus % group else [config.shard_group, group]
    found = []
    for shard_group in dict.fromkeys(groups):
        for bucket_elements in (config.bucket_elements, LARGER_BUCKETS * config.bucket_elements):
            changed = replace(config, shard_group=shard_group, bucket_elements=bucket_elements)
            texts = [
                f"distributed.{name} {getattr(changed, name)}"
                for name in ("shard_group", "bucket_elements")
                if getattr(changed, name) != getattr(config, name)
            ]
            if texts:
                other = plan_run(replace(plan.workload, distributed=changed), plan.hardware, plan.gpus)
                if other.step.total < 0.99 * plan.step.total:
                    found.append((", ".join(texts), other))
    return sorted(found, key=lambda pair: pair[1].step.total)
