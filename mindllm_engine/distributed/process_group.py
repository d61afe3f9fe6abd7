"""The processes of a run: ranks from torchrun's environment, the device of each, and the group they talk through.

One process for each GPU with NCCL, or any number of processes on the CPU with gloo. A run without torchrun is a
world of one and creates no group.
"""

import ctypes
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mindllm_engine import ranks
from mindllm_engine.distributed.rendezvous import join
from mindllm_engine.errors import ConfigError, MindLLMError, OtherRankError

# glibc's mallopt parameters (malloc.h) and what they are set to, in bytes.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
MALLOC_OPTIONS = {M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 1 << 28, M_MMAP_THRESHOLD: 1 << 30}


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank, world_size: position among all processes, and their number.
        local_rank: position among the processes of this machine; selects the GPU.
        device: where this process computes.
        local_world_size: processes of this machine.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def environment_world() -> World:
    """Rank, size and device by torchrun's environment variables, without creating a process group.

    Raises:
        ConfigError: the variables contradict each other, or this machine has fewer GPUs than processes.
    """
    rank, world_size = ranks.rank_and_size()
    local_rank = ranks.number_in_environment("LOCAL_RANK", 0)
    local_world_size = ranks.number_in_environment("LOCAL_WORLD_SIZE", 1)
    if not torch.cuda.is_available():
        return World(rank, world_size, local_rank, torch.device("cpu"), local_world_size)
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK={local_rank}, but this host has {torch.cuda.device_count()} GPUs; start as many processes "
            "(torchrun --nproc-per-node gpu)"
        )
    return World(rank, world_size, local_rank, torch.device("cuda", local_rank), local_world_size)


def start_processes(timeout_minutes: float = 30.0) -> World:
    """Set up this process's device and join the group of all ranks.

    The group waits twice the timeout for its own, so that the watchdog, which can say who is behind, comes first. It
    carries CPU tensors by gloo besides the device's own backend, for flags that must not wait for the device.

    Raises:
        MindLLMError: not all ranks came together within the timeout, or they run on different software.
    """
    world = environment_world()
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    else:
        _prepare_cpu(world.local_world_size)
    if world.world_size > 1:
        store = join(world.rank, world.world_size, world.device, timeout_minutes)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.world_size,
            timeout=timedelta(minutes=2 * timeout_minutes),
        )
    return world


def stop_processes() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _prepare_cpu(processes_on_machine: int) -> None:
    """Share the cores among the local processes, and keep freed activations in the process.

    By default glibc returns every large block to the system and faults it in again at the next step: 20,000 page faults
    a step of 2,048 tokens, which these options bring to none.
    """
    if processes_on_machine > 1:  # a process alone has all cores, or OMP_NUM_THREADS of them
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes_on_machine))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in MALLOC_OPTIONS.items():
        mallopt(option, value)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on some rank. Travels between hosts by gloo and does not wait for the device."""
    tensor = torch.tensor([int(flag)], dtype=torch.int32)
    return bool(all_reduce_sum(tensor).item())


def value_of_rank_0(value: int) -> int:
    """What rank 0 has for a non-negative number below 2^63. Travels as `any_rank`'s flag does."""
    tensor = torch.tensor([value], dtype=torch.int64)
    if dist.is_initialized():
        dist.broadcast(tensor, src=0)
    return int(tensor.item())


def ranks_with_another_value(value: int) -> list[int]:
    """The ranks whose number (of 63 bits) is not rank 0's, the same list on all of them. Travels as `any_rank`'s flag
    does."""
    if not dist.is_initialized():
        return []
    values = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    values[dist.get_rank()] = value
    return (all_reduce_sum(values) != values[0]).nonzero().flatten().tolist()


def raise_together(failure: MindLLMError | None, failing: str) -> None:
    """Raise on all ranks if one has a failure: there its own, elsewhere an `OtherRankError`, which is not printed.

    Args:
        failure: of this rank, if it has one.
        failing: what failed, for the other ranks: "rank 0 cannot write to runs/mine".
    """
    if any_rank(failure is not None):
        raise failure or OtherRankError(failing)
