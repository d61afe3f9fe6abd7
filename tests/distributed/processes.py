"""Real ranks for tests: processes joined by gloo, one thread each."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mindllm_engine.distributed.process_group import World


def run_ranks(function: Callable[..., Any], worlds: list[int], folder: Path, *args: Any) -> dict[int, list[Any]]:
    """Call `function(world, *args)` on every rank of each of these world sizes, one after the other in the same
    processes; returns the results of the ranks by world size. `function` must be importable, results picklable."""
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=rank_main, args=(rank, worlds, folder, function, args)) for rank in range(max(worlds))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failures = [path.read_text() for path in sorted(folder.glob("failure_*"))]
    assert not failures, failures[0]
    assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]
    return {
        size: [torch.load(folder / f"result_{size}_{rank}", weights_only=False) for rank in range(size)]
        for size in worlds
    }


def rank_main(rank: int, worlds: list[int], folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        for size in worlds:
            if rank >= size:
                continue
            dist.init_process_group("gloo", init_method=f"file://{folder}/store_{size}", rank=rank, world_size=size)
            world = World(rank, size, rank, torch.device("cpu"))
            torch.save(function(world, *args), folder / f"result_{size}_{rank}")
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        (folder / f"failure_{rank}").write_text(traceback.format_exc())
        raise
