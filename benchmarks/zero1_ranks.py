"""The processes in which `zero1.py` runs an engine, and what each of them measures.

An engine has processes of its own, one a rank, which do as they are told through pipes: so engines take turns, peaks of
memory are an engine's own, and whatever goes over the network during a turn is its doing.
"""

import contextlib
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.network_namespace import loopback_bytes
from benchmarks.process_memory import anonymous_bytes, forget_peak, peak_bytes, resident_bytes
from benchmarks.timing import synchronize
from benchmarks.zero1_messages import Message, record_messages
from benchmarks.zero1_peers import Engine, Variant, make
from benchmarks.zero1_task import Task
from mindllm_engine.distributed.process_group import start_processes, stop_processes

# A command that takes longer has hung.
PATIENCE_SECONDS = 300.0
# Nothing is sent any more so long after a barrier.
SETTLE_SECONDS = 0.05


class EngineFailed(Exception):
    """An engine could not be made or run; the message is its own, in one line."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        peak: the most that the process grew by, from before the network was built to the end of its steps.
        kinds: tensors that the engine keeps from step to step, by kind.
    """

    peak: int
    kinds: dict[str, int]


class Rank:
    """One rank with at most one engine. Each public method is a command, given to all ranks at once."""

    def __init__(self, warm_up: Task) -> None:
        self.world = start_processes()
        self.warm_up = warm_up
        self.engine: Engine | None = None
        self.losses: list[torch.Tensor] = []

    def build(self, variant: Variant, task: Task) -> None:
        """Make an engine in place of the one before. A tiny one first imports and compiles what it needs."""
        self.engine = None
        self.task = task
        tiny = make(variant, self.warm_up, self.world)
        tiny.step(self.warm_up.batches(self.world.rank, self.world.device)[0])
        tiny.finish()
        del tiny
        self.batches = task.batches(self.world.rank, self.world.device)
        dist.barrier()
        anonymous_bytes()  # gives back what is free
        self.resident = resident_bytes()
        if self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        forget_peak()
        self.losses = []
        self.engine = make(variant, task, self.world)

    def step(self) -> None:
        assert self.engine is not None
        self.losses.append(self.engine.step(self.batches[len(self.losses) % len(self.batches)]))

    def time(self, steps: int) -> tuple[float, float]:
        """Seconds a step of the steady state, and those of processors that this rank uses: after one more step that is
        not counted, whose end may still be under way when the first that is counted begins, as that of the last may be
        when it ends."""
        assert self.engine is not None
        dist.barrier()
        self.step()
        synchronize(self.world.device)
        begin, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step()
        synchronize(self.world.device)
        seconds = (time.perf_counter() - begin) / steps, (time.process_time() - used) / steps
        self.engine.finish()
        return seconds

    def sent(self, steps: int) -> float | None:
        """Bytes a rank and step that go through the loopback interface, headers and acknowledgements included; None
        where ranks talk otherwise."""
        assert self.engine is not None
        if self.world.device.type == "cuda":
            return None
        quiet()
        before = loopback_bytes()
        dist.barrier()
        for _ in range(steps):
            self.step()
        self.engine.finish()
        quiet()
        return (loopback_bytes() - before) / steps / self.world.world_size

    def messages(self) -> list[Message]:
        """What one step sends, from a recording of it."""
        assert self.engine is not None
        self.step()  # what it began in the step before is not this one's
        self.engine.finish()
        dist.barrier()

        def recorded() -> None:
            self.step()
            assert self.engine is not None
            self.engine.finish()

        return record_messages(recorded)

    def memory(self) -> Memory:
        assert self.engine is not None
        cuda = self.world.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else peak_bytes() - self.resident
        kinds = self.engine.tensors()
        return Memory(peak, {kind: sum(storage_bytes(tensors).values()) for kind, tensors in kinds.items()})

    def loss_of_each_step(self) -> list[float]:
        return [loss.item() for loss in self.losses]


def storage_bytes(tensors: list[torch.Tensor]) -> dict[int, int]:
    """Bytes of the storages that tensors lie in, by address; a view counts as its own part only."""
    return {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}


def quiet() -> None:
    """Wait until all ranks are here and nothing is on its way."""
    dist.barrier()
    time.sleep(SETTLE_SECONDS)


class Ranks:
    """Handles of the processes of one engine. What these print goes to the end of `log`."""

    def __init__(self, world_size: int, warm_up: Task, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        port = free_port()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (rank, world_size, port, theirs, warm_up, log)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def close(self, failed: bool = False) -> None:
        """End the processes; at once where they have failed and may not listen."""
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
            pipe.close()
        for process in self.processes:
            process.join(timeout=1 if failed else 20)
            if process.is_alive():
                process.kill()
                process.join()

    def call(self, command: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Have all ranks carry out a method of `Rank`; returns what each of them returned.

        Raises:
            EngineFailed: one of them raised an error, died, or did not end.
        """
        try:
            for pipe in self.pipes:
                pipe.send((command.__name__, arguments))
            deadline = time.monotonic() + PATIENCE_SECONDS
            found: list[Any] = [None] * len(self.pipes)
            waiting = set(range(len(self.pipes)))
            while waiting:  # whoever fails is heard first: the others may wait for it for ever
                for rank in list(waiting):
                    if self.pipes[rank].poll(0.001 if len(waiting) > 1 else 1.0):
                        failure, found[rank] = self.pipes[rank].recv()
                        if failure is not None:
                            raise EngineFailed(failure)
                        waiting.remove(rank)
                if time.monotonic() > deadline:
                    raise EngineFailed(f"{command.__name__} did not end within {PATIENCE_SECONDS:g} s")
            return found
        except (EOFError, OSError) as error:
            raise EngineFailed(f"a rank died in {command.__name__}") from error


def serve(rank: int, world_size: int, port: int, pipe: Connection, warm_up: Task, log: Path) -> None:
    """What a process does: the commands that come through the pipe, until None or its end."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in sizes.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"})
    member = None
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while (request := pipe.recv()) is not None:
            name, arguments = request
            try:
                member = member or Rank(warm_up)
                pipe.send((None, getattr(member, name)(*arguments)))
            except Exception as error:  # a peer may fail in any way
                traceback.print_exc()
                pipe.send((f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", None))
    if member is not None:
        stop_processes()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
