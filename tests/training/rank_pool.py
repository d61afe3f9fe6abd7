"""Ranks that stay: processes in which one run after another is trained, each on as many ranks as it wants. Starting
torchrun takes seconds, joining a process group milliseconds.

They are given torchrun's environment, with a store that outlives a run, so that `pretrain` starts as under torchrun.
"""

import os
import traceback
from multiprocessing.connection import Connection
from types import TracebackType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain

SECONDS_A_RUN = 120.0


class RankPool:
    """A context manager around as many processes as the largest world has ranks."""

    def __init__(self, largest_world: int) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.runs = 0
        context = mp.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(largest_world):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def pretrain(self, ranks: int, config: RunConfig) -> None:
        """Train on the first so many ranks, to the end. Fails with the traceback of the first rank that fails."""
        self.runs += 1
        environment = {
            "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(self.runs), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        }  # fmt: skip
        for rank, pipe in enumerate(self.pipes[:ranks]):
            pipe.send((environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, config))
        for rank, pipe in enumerate(self.pipes[:ranks]):
            assert pipe.poll(SECONDS_A_RUN), f"rank {rank} of {ranks} is stuck: {config}"
            failure = pipe.recv()
            assert failure is None, f"rank {rank} of {ranks}: {failure}"


def serve(pipe: Connection) -> None:
    """One of the processes: runs until the pipe is closed."""
    torch.set_num_threads(1)
    while True:
        environment, config = pipe.recv()
        os.environ.update(environment)
        try:
            pretrain(config)
            pipe.send(None)
        except BaseException:
            pipe.send(traceback.format_exc())
