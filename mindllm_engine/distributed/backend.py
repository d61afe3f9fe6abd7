"""What the training loop, the checkpoints and the faults know of data parallelism: one interface, two backends.

`zero1.Zero1` is ours; `deepspeed_backend.DeepSpeedZero1` drives DeepSpeed's stage 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from mindllm_engine.distributed.layout import Piece
from mindllm_engine.errors import ConfigError

# The kinds of optimizer state, each fp32 and as long as the parameters.
StateKind = Literal["master", "m", "v"]
STATE_KINDS: tuple[StateKind, ...] = ("master", "m", "v")

# Given the mean loss and the gradient norm of a step, both () fp32 on the device and equal on all ranks: a () bool
# tensor, whether the step is to be skipped.
StepGuard = Callable[[Tensor, Tensor], Tensor]


def is_not_finite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """() bool: whether a step would destroy the weights: the least a `StepGuard` does."""
    return ~(loss + grad_norm).isfinite()


@dataclass
class DistributedConfig:
    """Data parallelism: who keeps which part of the optimizer state, and how gradients travel."""

    backend: Literal["native", "deepspeed"] = "native"
    """`native` is this engine's ZeRO-1; `deepspeed` is DeepSpeed's stage 1 (needs the extra `[deepspeed]`)."""
    wire: Literal["auto", "bf16", "fp32"] = "auto"
    """Gradients travel in this dtype and are summed in fp32; `auto` is `train.precision`."""
    bucket_elements: int = 1 << 26
    """Parameters whose gradients travel together."""
    shard_group: int | None = None
    """Ranks that share one copy of the optimizer state, neighbours by rank (those of a node, where the network between
    nodes is slow): each such group holds all of it. Empty: all ranks share one."""
    deepspeed_config: str | None = None
    """A DeepSpeed configuration in JSON whose `zero_optimization.offload_optimizer` and `.overlap_comm` are handed on,
    for `backend: deepspeed`; all else follows from this configuration."""
    timeout_minutes: float = 30.0
    """After this long without progress a collective counts as hung, and the run ends with an error."""

    def validate(self, world_size: int) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if self.bucket_elements < 1:
            raise ConfigError(f"distributed.bucket_elements: {self.bucket_elements} must be at least 1")
        if self.deepspeed_config is not None and self.backend != "deepspeed":
            raise ConfigError(
                "distributed.deepspeed_config: needs distributed.backend deepspeed; set that, or leave the key out"
            )
        if not 0 < self.timeout_minutes < 1e6:
            raise ConfigError(f"distributed.timeout_minutes: {self.timeout_minutes} must be above 0")
        if self.shard_group is not None and (self.shard_group < 1 or world_size % self.shard_group):
            raise ConfigError(
                f"distributed.shard_group: {self.shard_group} must divide the number of ranks, {world_size}"
            )


@dataclass(frozen=True)
class StepResult:
    """What a step leaves on the device, equal on all ranks.

    Attributes:
        loss: () fp32, mean loss over the supervised tokens of the global batch, nats.
        grad_norm: () fp32, global norm of its gradient before clipping.
        skipped: () bool, whether the weights were left as they were.
    """

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor


class Backend(Protocol):
    """Keeps the replicas of one model equal, and updates them.

    Attributes:
        saves_state: whether this rank's pieces belong in a checkpoint (of several equal copies, one does).
        overlap: share of gradient elements that began to travel before backward had finished in the last step; None
            where that is not known.
    """

    saves_state: bool
    overlap: float | None

    @property
    def updates(self) -> int:
        """Optimizer steps done, skipped ones included."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Backward of one micro-batch; gradients add up in fp32. With the `last` one of a step they start to travel."""

    def step(self, lr: float, batch_tokens: int, sums: Tensor, guard: StepGuard) -> StepResult:
        """Reduce gradients, update, and start to spread the new parameters.

        Args:
            lr: learning rate of this step.
            batch_tokens: what the losses given to `backward` were divided by.
            sums: (2,) fp64, this rank's sum of losses in nats and its supervised tokens. The gradient becomes that of
                the mean over the supervised tokens of the global batch.
            guard: says whether to skip the step.
        """

    def wait_for_parameters(self) -> None:
        """Returns when all parameters are up to date (forward does not need it: it waits layer by layer)."""

    def pieces(self) -> list[Piece]:
        """The parts of parameters whose optimizer state this rank holds."""

    def read_state(self) -> dict[StateKind, list[Tensor]]:
        """Optimizer state of `pieces()`, each (piece.elements,) fp32; views or copies."""

    def write_state(self, state: dict[StateKind, list[Tensor]], updates: int) -> None:
        """Take over optimizer state of `pieces()`, on all ranks, and spread the parameters it stands for."""
