"""Whether a trial fits in this machine's memory, by arithmetic, before anything of it is made."""

import os
from pathlib import Path

import torch

from mindllm_engine.distributed.memory_plan import MAIN_GRADIENT_BYTES, STATE_BYTES
from mindllm_engine.models.activation_memory import activation_bytes
from mindllm_engine.studies.trials import PlannedTrial

# What a process holds before it has a network: the interpreter and torch; on a GPU its context besides.
PROCESS_BYTES = 700e6
# Of the machine's memory, what trials may plan with: the estimate knows no fragmentation and no page cache.
SHARE = 0.85


def trial_bytes(planned: PlannedTrial) -> float:
    """Most that one process training this trial alone holds, in bytes: parameters, fp32 gradients, optimizer state, and
    the activations of a micro-batch."""
    config = planned.config
    itemsize = 2 if config.train.precision == "bf16" else 4
    on_cpu = not torch.cuda.is_available()
    tokens = config.train.micro_batch_size * config.data.seq_len
    activations = activation_bytes(
        config.model.selected,
        tokens,
        config.train.activation_checkpointing,
        itemsize=itemsize,
        reference_kernels=on_cpu,
        reference_attention=[config.data.seq_len] * config.train.micro_batch_size if on_cpu else None,
    )
    held = planned.parameters * (itemsize + MAIN_GRADIENT_BYTES + STATE_BYTES[config.optim.master])
    return PROCESS_BYTES + held + activations.peak


def machine_bytes() -> float:
    """Memory of the device that trials train on: the GPU's, or the machine's (or its control group's)."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[1])
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, float(text))
    return total


def too_large(planned: PlannedTrial, memory_bytes: float, workers: int) -> str | None:
    """Why a trial does not fit beside the other workers', each with an equal part; None if it does."""
    needed, part = trial_bytes(planned), SHARE * memory_bytes / workers
    if needed <= part:
        return None
    return (
        f"{planned.parameters / 1e6:,.0f} M parameters need {needed / 2**30:,.1f} GiB, and a worker has "
        f"{part / 2**30:,.1f}; lower study.workers, train under torchrun, or take a smaller network"
    )
