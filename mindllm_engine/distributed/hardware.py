"""What the simulated cluster has to know of a machine: a few constants, each with where it comes from.

They stand in configs/hardware/*.yaml, as inputs: a measured figure replaces an assumed one there.
"""

from dataclasses import dataclass, fields

from mindllm_engine.errors import ConfigError


@dataclass(frozen=True)
class Constant:
    """A number and its source."""

    value: float
    """In the unit that the field it stands in names."""
    source: str
    """The data sheet, the measurement, or the assumption it comes from."""
    assumed: bool = False
    """Whether nobody has measured or published it for this machine."""


@dataclass(frozen=True)
class Hardware:
    """A GPU, the node it sits in, and the network between nodes. Bandwidths count one direction."""

    name: str
    """What it is called in tables."""
    memory_bytes: Constant
    """Memory of a GPU that a process can allocate, bytes."""
    memory_bandwidth: Constant
    """Of a GPU's memory, bytes/s."""
    peak_flops: Constant
    """Dense bf16 products with fp32 sums, FLOP/s."""
    gemm_efficiency: Constant
    """Share of the peak that matrix products sustain in a training step."""
    attention_efficiency: Constant
    """The same of attention; the half of the scores that the causal mask hides is not computed and not counted."""
    bandwidth_efficiency: Constant
    """Share of the memory bandwidth that elementwise kernels and AdamW reach."""
    nvlink_bandwidth: Constant
    """From a GPU to the others of its node, bytes/s."""
    network_bandwidth: Constant
    """From a GPU to other nodes, bytes/s."""
    link_efficiency: Constant
    """Share of either bandwidth that large collectives reach."""
    launch_latency: Constant
    """Of a collective, before its first hop, s."""
    nvlink_latency: Constant
    """Of a hop within a node by NCCL's simple protocol, s."""
    network_latency: Constant
    """Of a hop between nodes by NCCL's simple protocol, s."""
    nvlink_latency_ll128: Constant
    """Of a hop within a node by its LL128 protocol, s."""
    network_latency_ll128: Constant
    """Of a hop between nodes by its LL128 protocol, s."""
    gpus_per_node: Constant
    """GPUs of a node."""
    dollars_per_gpu_hour: Constant
    """Rent of a GPU with its share of the node and the network."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible constant."""
        for name, constant in self.constants().items():
            if not 0 < constant.value < float("inf"):
                raise ConfigError(f"{self.name}: {name}: {constant.value} must be a finite number above 0")
            if name.endswith("_efficiency") and constant.value > 1:
                raise ConfigError(f"{self.name}: {name}: {constant.value} must be at most 1")
            if not constant.source.strip():
                raise ConfigError(f"{self.name}: {name}: names no source; say where the number comes from")

    def constants(self) -> dict[str, Constant]:
        """All constants by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Constant)}
