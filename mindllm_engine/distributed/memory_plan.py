"""Bytes that a rank holds in training, by kind, and the most it holds at once: arithmetic on layout and network.

    parameters, gradients   the flat buffers, padding included
    optimizer               this rank's slices of master weights and moments
    activations             what a micro-batch's forward keeps (`models/activation_memory.py`)
    working                 the loss's logits, or what one layer's backward computes again and its gradients in flight
    wire                    gradients packed for the network and what arrives of others', of the buckets under way, and
                            where the optimizer is shared over nodes the same of sums of nodes

Activations shrink during backward while buckets leave, so the peak is that of a moment and not the sum of all kinds. It
leaves out what no tensor holds: the context of CUDA and NCCL's buffers, a few GB, and the allocator's fragmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mindllm_engine.distributed.compute_model import module_of
from mindllm_engine.distributed.layout import Bucket, Layout
from mindllm_engine.distributed.zero1 import MAX_IN_FLIGHT
from mindllm_engine.models import NetworkConfig
from mindllm_engine.models.activation_memory import ActivationCheckpointing, activation_bytes

# Of m, v and the master weights, or of m, v and the master's extra bits.
STATE_BYTES = {"fp32": 12, "bf16_and_bits": 10}
MAIN_GRADIENT_BYTES = 4


@dataclass(frozen=True)
class MemoryBytes:
    """Bytes of one rank. `wire` is the most of any moment; `peak` is that of the moment `at`."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    wire: int
    peak: int
    at: str

    @property
    def persistent(self) -> int:
        """What a rank holds between steps."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class OnCpu:
    """That a run is one of a CPU, whose operators are PyTorch references and keep other things.

    Attributes:
        lengths: of the documents in a micro-batch.
    """

    lengths: tuple[int, ...]


def memory_bytes(
    config: NetworkConfig,
    layout: Layout,
    gradient_order: Sequence[str],
    tokens: int,
    *,
    itemsize: int,
    wire_itemsize: int,
    node_size: int,
    master: str = "fp32",
    checkpointing: ActivationCheckpointing = "none",
    cpu: OnCpu | None = None,
) -> MemoryBytes:
    """Memory of a rank whose micro-batches have `tokens` tokens.

    Args:
        itemsize, wire_itemsize: bytes of an element of the parameters, and of gradients on the network.
        node_size: ranks of a shard group on a node, where it spans several; else all of them.
        cpu: for a run on a CPU.
    """
    activations = activation_bytes(
        config,
        tokens,
        checkpointing,
        itemsize=itemsize,
        reference_kernels=cpu is not None,
        reference_attention=None if cpu is None else cpu.lengths,
    )
    parameters = layout.elements * itemsize
    gradients = layout.elements * MAIN_GRADIENT_BYTES
    optimizer = layout.shard_elements * STATE_BYTES[master]
    # The reference returns a dense gradient of the embedding, which autograd keeps to the end, since the input side
    # adds another; kernels add to the main gradient.
    embedding = config.vocab_size * config.hidden_size * itemsize if cpu is not None else 0
    moments = {"the loss": activations.peak}
    left = layers_left(layout.buckets, gradient_order, config.n_layers)
    wire = wire_bytes(layout, wire_itemsize, node_size, on_gpu=cpu is None)
    for index, bucket in enumerate(layout.buckets):
        kept = activations.layers * left[index] // config.n_layers
        working = activations.working if left[index] else 2 * embedding
        moments[f"backward, bucket {bucket.index}"] = kept + max(working, embedding) + wire[index]
    at = max(moments, key=lambda moment: moments[moment])
    persistent = parameters + gradients + optimizer
    return MemoryBytes(
        parameters,
        gradients,
        optimizer,
        activations.kept,
        activations.working,
        max(wire),
        persistent + moments[at],
        at,
    )


def wire_bytes(layout: Layout, wire_itemsize: int, node_size: int, on_gpu: bool) -> list[int]:
    """What all reductions hold when each bucket has left (`collectives.Reduction`): of the last MAX_IN_FLIGHT buckets
    what is sent to the other ranks (of the node) and what is received of them; with nodes, of as many before them the
    same of their sums on the node.

    Nothing where NCCL sums fp32 in place, and no packed copy where a CPU sends fp32 and there are no nodes. Summing a
    bucket on the node takes no more than sending the next one: with its sum in fp32, (1 + 4 / node_size) of what was
    received, against 2.
    """
    if layout.shards == 1 or (on_gpu and wire_itemsize == MAIN_GRADIENT_BYTES):
        return [0] * len(layout.buckets)
    nodes = layout.shards // node_size
    is_sent_in_place = not on_gpu and wire_itemsize == MAIN_GRADIENT_BYTES
    on_node, between_nodes = [], []
    for bucket in layout.buckets:
        whole = (bucket.stop - bucket.start) * wire_itemsize
        received = whole // node_size * (node_size - 1)
        on_node.append(received if is_sent_in_place and nodes == 1 else 2 * received)
        part = whole // node_size
        received = part // nodes * (nodes - 1)
        # A CPU sends fp32 sums from where they are, which holds all of them.
        between_nodes.append(received + (part if is_sent_in_place and nodes > 1 else received))
    held = []
    for index in range(len(layout.buckets)):
        first, second = (max(0, index + 1 - stage * MAX_IN_FLIGHT) for stage in (1, 2))
        held.append(sum(on_node[first : index + 1]) + sum(between_nodes[second:first]))
    return held


def layers_left(buckets: Sequence[Bucket], gradient_order: Sequence[str], n_layers: int) -> list[int]:
    """How many layers have not finished backward when each bucket leaves."""
    done_at = {name: position for position, name in enumerate(gradient_order)}
    last_of_layer: dict[str, int] = {}
    for name, position in done_at.items():
        if module_of(name):
            last_of_layer[module_of(name)] = max(position, last_of_layer.get(module_of(name), 0))
    left, leaves = [], 0
    for bucket in buckets:
        leaves = max(leaves, max(done_at[name] for name in bucket.names))
        left.append(n_layers - sum(position <= leaves for position in last_of_layer.values()))
    return left
