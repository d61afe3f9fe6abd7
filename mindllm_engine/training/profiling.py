"""A trace of some steps of a run, and what lies in the GPU's memory: `run.dir`/profile/.

    trace_rank0.json     open in chrome://tracing or ui.perfetto.dev
    memory_rank0.pickle  open in pytorch.org/memory_viz: every allocation of these steps, and where it was made

Before the first of these steps and after the last nothing is wrapped or recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from mindllm_engine.distributed.backend import Backend
from mindllm_engine.distributed.process_group import World
from mindllm_engine.errors import ConfigError, MindLLMError

# Allocations and frees that a memory snapshot goes back at most.
MEMORY_EVENTS = 200_000

# Methods of backends, and how their time is labelled. Torch labels the collectives themselves.
BACKEND_LABELS = {
    "backward": "backward",
    "step": "optimizer step",
    "reduce_next": "begin reduce-scatter",
    "finish_reducing": "finish reduce-scatters",
    "begin_gather": "begin all-gather",
    "wait_for": "wait for all-gather",
}


@dataclass
class ProfileConfig:
    """Which steps are traced, on which ranks."""

    first_step: int = 0
    """The first step of the trace; steps count from 1, those before it warm up, and 0 is for no trace."""
    last_step: int = 0
    """The last one. A trace takes megabytes a step."""
    ranks: list[int] = field(default_factory=lambda: [0])
    """Ranks that write a trace."""
    memory: bool = False
    """Write a snapshot of the GPU's memory as well; of a CPU's there is none."""

    def validate(self, world_size: int, steps: int) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if self.first_step == 0 and self.last_step == 0:
            return
        if not 1 <= self.first_step <= self.last_step <= steps:
            raise ConfigError(
                f"profile: first_step {self.first_step} and last_step {self.last_step} must lie in that order in 1 to "
                f"train.steps = {steps}"
            )
        for rank in self.ranks:
            if not 0 <= rank < world_size:
                raise ConfigError(f"profile.ranks: there is no rank {rank} among {world_size}")


class StepProfiler:
    """Traces the configured steps of one rank.

    Args:
        folder: where the files go; made when the first is written.
        say: prints a line.
    """

    def __init__(
        self,
        config: ProfileConfig,
        folder: Path,
        world: World,
        model: nn.Module,
        backend: Backend,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self.is_traced = config.first_step > 0 and world.rank in config.ranks
        self.folder = folder
        self.world = world
        self.backend = backend
        self.methods: list[tuple[Any, str, str]] = [(model, "forward", "forward")]
        self.methods += [(backend, name, label) for name, label in BACKEND_LABELS.items() if hasattr(backend, name)]
        self.tracer: profile | None = None
        if say is not None and config.first_step > 0 and config.memory and world.device.type != "cuda":
            say("profile.memory: torch keeps no record of a CPU's memory; there will be no snapshot")

    def before_step(self, step: int) -> None:
        """Begin, if `step` (from 1) is the first one; a run that goes on from within begins there."""
        if self.tracer is not None or not self.is_traced:
            return
        if not self.config.first_step <= step <= self.config.last_step:
            return
        for owner, name, label in self.methods:
            setattr(owner, name, labelled(getattr(owner, name), label))
        activities = [ProfilerActivity.CPU]
        if self.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            if self.config.memory:
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self.tracer = profile(activities=activities)
        self.tracer.start()

    def after_step(self, step: int) -> None:
        """End and write, if `step` is the last one."""
        if step == self.config.last_step:
            self.close()

    def close(self) -> None:
        """End and write a trace that has begun; the run ends before its last step, perhaps.

        Raises:
            MindLLMError: it cannot be written.
        """
        if self.tracer is None:
            return
        # torch writes the end of a message into its trace, even of one that it has freed.
        self.backend.wait_for_parameters()
        self.tracer.stop()
        for owner, name, _ in self.methods:
            delattr(owner, name)  # what the class has shows again
        rank = self.world.rank
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.tracer.export_chrome_trace(str(self.folder / f"trace_rank{rank}.json"))
            if self.config.memory and self.world.device.type == "cuda":
                torch.cuda.memory._dump_snapshot(str(self.folder / f"memory_rank{rank}.pickle"))
                torch.cuda.memory._record_memory_history(enabled=None)
        except (OSError, RuntimeError) as error:
            raise MindLLMError(f"{self.folder}: the profile cannot be written ({error}); free space") from error
        finally:
            self.tracer = None


def labelled(method: Any, label: str) -> Any:
    """`method`, its time under `label` in a trace."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return method(*args, **kwargs)

    return run
