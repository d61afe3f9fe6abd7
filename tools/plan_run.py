"""What a run needs of a cluster: `python tools/plan_run.py --config configs/mindllm_3b.yaml --gpus 512 --gpu h200`.

Neither GPU nor data is needed: the network is built without memory, and ZeRO-1 takes its step over a process group
that is not there. See docs/cluster.md.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.distributed.simulated_cluster import Workload, check_micro_batch, plan_run
from mindllm_engine.errors import ConfigError
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.hardware_files import read_hardware
from mindllm_engine.training.plan_report import draw, report

# Clusters that a run is always compared on.
SIZES = (8, 64, 512, 4096)


@dataclass
class PlanRunArguments(RunConfig):
    """A run's configuration, and the cluster to plan it for."""

    gpus: int = 8
    """How many GPUs; others are shown beside them."""
    gpu: str = "h200"
    """What they are: a file of configs/hardware without its ending, or a YAML file like these."""
    micro_batch_size: int | None = None
    """In place of `train.micro_batch_size`, which is otherwise cut down where it does not divide."""
    tokens: float = 500e9
    """Tokens of the whole run: days and dollars are for these."""
    gemm_efficiency: float | None = None
    """A measured share of the peak that matrix products sustain, in place of the one in the GPU's file."""
    plot: str | None = None
    """PNG file for a picture."""


def main() -> None:
    """Plan and print."""
    config = parse_arguments(PlanRunArguments, "Plan a run on a cluster: memory, messages, step time, days, dollars.")
    if config.gpus < 1:
        raise ConfigError(f"gpus: {config.gpus} must be at least 1")
    if not 0 < config.tokens < float("inf"):
        raise ConfigError(f"tokens: {config.tokens} must be a finite number above 0")
    hardware = read_hardware(config.gpu)
    if config.gemm_efficiency is not None:
        measured = dataclasses.replace(
            hardware.gemm_efficiency, value=config.gemm_efficiency, source="given on the command line", assumed=False
        )
        hardware = dataclasses.replace(hardware, gemm_efficiency=measured)
    own = config.train.micro_batch_size
    micro_batch_size = own if config.micro_batch_size is None else config.micro_batch_size
    workload = Workload(
        model=config.model.selected,
        seq_len=config.data.seq_len,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=micro_batch_size,
        precision=config.train.precision,
        optim=config.optim,
        distributed=config.distributed,
        checkpointing=config.train.activation_checkpointing,
    )
    workload.validate()
    if config.micro_batch_size is not None:
        check_micro_batch(workload, config.gpus)
    group = config.distributed.shard_group or 1
    sizes = {size for size in SIZES if size % group == 0} | {config.gpus}
    plans = [plan_run(workload, hardware, gpus) for gpus in sorted(sizes)]
    print(report(plans, config.tokens))
    if config.plot is not None:
        draw(plans, config.tokens, Path(config.plot))


if __name__ == "__main__":
    run_tool(main)
