"""Does the planned memory hold? Two processes train for real on the CPU, and what they allocate is set beside the plan.

    python benchmarks/plan_run_memory.py [--json FILE]

Each rank (gloo) runs ZeRO-1's steps on a MindLLM of 24 M parameters. What it holds between steps is summed over the
storages of its tensors, by kind; the peak of a step comes from torch's profiler, which sees every allocation and
release. Nothing of the plan is used to measure. CPU operators are PyTorch references, which keep other things than the
kernels do; the plan is told so.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from mindllm_engine.distributed.backend import DistributedConfig, is_not_finite
from mindllm_engine.distributed.execution_order import record_execution_order
from mindllm_engine.distributed.memory_plan import MemoryBytes, OnCpu, memory_bytes
from mindllm_engine.distributed.process_group import World
from mindllm_engine.distributed.simulated_cluster import Workload, record_order, take_step
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.models.layer_options import apply_layer_options
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.optim.optimizer import OptimConfig

RANKS = 2
BAR = 0.05
NETWORK = MindLLMConfig(vocab_size=8192, hidden_size=384, ffn_size=1024, n_layers=12, n_heads=6, max_seq_len=256)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Measured:
    """Bytes of rank 0."""

    parameters: int
    gradients: int
    optimizer: int
    peak: int


def workload(precision: Any, checkpointing: Any, seq_len: int, micro_batch_size: int) -> Workload:
    """The network with buckets that are small beside it, as in a real run."""
    distributed = DistributedConfig(bucket_elements=1 << 21)
    return Workload(
        NETWORK,
        seq_len,
        RANKS * micro_batch_size,
        micro_batch_size,
        precision,
        OptimConfig(),
        distributed,
        checkpointing,
    )


CASES = {
    "fp32, 4 x 256 tokens": workload("fp32", "none", 256, 4),
    "bf16, 4 x 256 tokens": workload("bf16", "none", 256, 4),
    "bf16, 16 x 256 tokens": workload("bf16", "none", 256, 16),
    "bf16, 16 x 256 tokens, selective": workload("bf16", "selective", 256, 16),
    "bf16, 16 x 256 tokens, full": workload("bf16", "full", 256, 16),
}


def planned(case: Workload) -> MemoryBytes:
    """The plan of exactly this run, made without a process group."""
    model = case.model.build(device="meta", dtype=DTYPES[case.precision])
    order = record_order(model)
    layout, _ = take_step(model, order, case, RANKS, RANKS)
    return memory_bytes(
        case.model,
        layout,
        order.gradients,
        case.micro_batch_size * case.seq_len,
        itemsize=DTYPES[case.precision].itemsize,
        wire_itemsize=case.wire.itemsize,
        node_size=RANKS,
        checkpointing=case.checkpointing,
        cpu=OnCpu((case.seq_len,) * case.micro_batch_size),
    )


def measure(case: Workload) -> Measured:
    """Run the case in processes of its own; what rank 0 saw."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(train, (case, folder), nprocs=RANKS)
        return Measured(**json.loads((Path(folder) / "measured").read_text()))


def train(rank: int, case: Workload, folder: str) -> None:
    """One rank: two steps, the second under the profiler."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(minutes=5)
    )
    model = case.model.build(dtype=DTYPES[case.precision], seed=1)
    apply_layer_options(model, case.checkpointing, compiled=False)
    tokens = case.micro_batch_size * case.seq_len
    ids = torch.arange(tokens) % NETWORK.vocab_size
    positions = torch.arange(tokens) % case.seq_len
    cu_seqlens = torch.arange(0, tokens + 1, case.seq_len, dtype=torch.int32)

    def loss() -> Tensor:
        losses: Tensor = model(ids, positions, cu_seqlens, targets=ids)
        return losses.sum() / tokens

    order = record_execution_order(model, loss)
    zero1 = Zero1(model, World(rank, RANKS, rank, torch.device("cpu")), case.optim, case.distributed, case.wire, order)

    def step() -> None:
        zero1.backward(loss(), last=True)
        zero1.step(1e-4, RANKS * tokens, torch.tensor([1.0, tokens], dtype=torch.float64), is_not_finite)
        zero1.wait_for_parameters()

    step()
    optimizer = zero1.optimizer
    kinds = {
        "parameters": storage_bytes([zero1.flat.params]),
        "gradients": storage_bytes([zero1.flat.grads]),
        "optimizer": storage_bytes([*optimizer.master, *optimizer.m, *optimizer.v]),
    }
    held = storage_bytes([*model.parameters(), zero1.flat.grads, *optimizer.master, *optimizer.m, *optimizer.v])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    if rank == 0:
        measured = Measured(**kinds, peak=held + highest_rise(profiler))
        (Path(folder) / "measured").write_text(json.dumps(asdict(measured)))
    dist.barrier()
    dist.destroy_process_group()


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def highest_rise(profiler: torch.profiler.profile) -> int:
    """The most that was allocated at any moment beyond what was at the start."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest


def rows_of(name: str, case: Workload) -> list[dict[str, Any]]:
    """A row for each kind and for the peak: ours is the plan, the peer is what was measured."""
    plan, real = planned(case), measure(case)
    rows = []
    for kind in ("parameters", "gradients", "optimizer", "peak"):
        ours, peer = getattr(plan, kind), getattr(real, kind)
        rows.append(
            {
                "name": f"{name}: {kind}", "unit": "bytes", "ours": ours, "peer": peer, "peer_name": "measured",
                "ratio": ours / peer, "bar": 1 - BAR, "holds": abs(ours / peer - 1) <= BAR,
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Print the table. Exit code 1 where the plan is off by more than the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [row for name, case in CASES.items() for row in rows_of(name, case)]
    for row in rows:
        print(
            f"{row['name']:48} planned {row['ours'] / 1e6:9.2f} MB  measured {row['peer'] / 1e6:9.2f} MB  ratio "
            f"{row['ratio']:.4f}{'' if row['holds'] else '  MISSED'}"
        )
    if arguments.json:
        from benchmarks.peers import versions

        report = {"machine": os.uname().machine, "versions": dict(versions()), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()
