"""Processes that save and load checkpoints together, and a backend whose state is known: plain tensors in a layout."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mindllm_engine.distributed.backend import STATE_KINDS, StateKind
from mindllm_engine.distributed.layout import Piece, make_layout
from mindllm_engine.distributed.process_group import World
from mindllm_engine.models import ModelConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.training import checkpoint_storage
from mindllm_engine.training.checkpoint import CheckpointState, checkpoint_of
from mindllm_engine.training.checkpointer import Checkpointer

MODEL = ModelConfig(
    mindllm=MindLLMConfig(vocab_size=97, hidden_size=32, ffn_size=48, n_layers=2, n_heads=2, max_seq_len=32)
)
Shapes = dict[str, tuple[int, ...]]
SHAPES: Shapes = {"embedding": (97, 32), "norm": (33,), "up": (48, 32), "gate": (5, 7, 3)}


class KnownBackend:
    """State of any bits, the same whoever holds it: that of `seed`, cut into the pieces of this rank."""

    def __init__(self, shapes: Shapes, world: World, bucket_elements: int = 256, shards: int | None = None) -> None:
        shards = shards or world.world_size
        self.layout = make_layout(shapes, list(shapes), shards, bucket_elements)
        self.shard = world.rank % shards
        self.saves_state = world.rank < shards
        self.updates = 0
        self.state: dict[StateKind, list[Tensor]] = {}
        self.fill(0)

    def pieces(self) -> list[Piece]:
        return self.layout.pieces(self.shard)

    def fill(self, seed: int) -> None:
        """Take the state of `seed`."""
        self.updates = seed
        self.state = self.expected(seed)

    def expected(self, seed: int) -> dict[StateKind, list[Tensor]]:
        return {
            kind: [torch.from_numpy(bits(seed, kind, piece)[piece.first : piece.stop]) for piece in self.pieces()]
            for kind in STATE_KINDS
        }

    def holds(self, seed: int) -> bool:
        """Whether the state is that of `seed`, bit for bit."""
        expected = self.expected(seed)
        return self.updates == seed and all(
            torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
            for kind in STATE_KINDS
            for ours, theirs in zip(self.state[kind], expected[kind], strict=True)
        )

    def read_state(self) -> dict[StateKind, list[Tensor]]:
        return self.state

    def write_state(self, state: dict[StateKind, list[Tensor]], updates: int) -> None:
        self.state = {kind: [tensor.clone() for tensor in tensors] for kind, tensors in state.items()}
        self.updates = updates


def bits(seed: int, kind: str, piece: Piece) -> np.ndarray:
    """A whole flattened parameter of random bits: numbers, infinities and all kinds of NaN."""
    rng = np.random.default_rng([seed, *kind.encode(), 0, *piece.name.encode()])
    return rng.integers(0, 1 << 32, int(np.prod(piece.shape)), dtype=np.uint32).view(np.float32)


def make_state(step: int) -> CheckpointState:
    return CheckpointState(
        step=step,
        next_sample=8 * step,
        model=asdict(MODEL),
        plan={"seed": 1, "sources": [], "blocks": []},
        tokenizer_hash="a" * 16,
    )


def checkpointer(
    folder: Path, backend: Any, world: World, keep: int = 0, keep_every: int = 0, block_bytes: int = 1024
) -> Checkpointer:
    checkpoint_storage.BLOCK_BYTES = block_bytes
    return Checkpointer(folder, backend, world, keep, keep_every, timeout_minutes=1.0)


def save(
    world: World, folder: Path, step: int, shapes: Shapes = SHAPES, bucket_elements: int = 256, block_bytes: int = 1024,
    shards: int | None = None,
) -> None:  # fmt: skip
    """Save the state of seed `step`, to the end."""
    backend = KnownBackend(shapes, world, bucket_elements, shards)
    backend.fill(step)
    saving = checkpointer(folder, backend, world, block_bytes=block_bytes)
    saving.save(make_state(step))
    saving.wait()


def load(
    world: World, folder: Path, step: int, shapes: Shapes = SHAPES, bucket_elements: int = 256,
    shards: int | None = None,
) -> tuple[str | None, bool, int]:  # fmt: skip
    """(The error of loading, whether the state is that of seed `step` afterwards, bytes read in between)."""
    backend = KnownBackend(shapes, world, bucket_elements, shards)
    loading = checkpointer(folder, backend, world)
    before, problem = bytes_read(), None
    try:
        loading.load(checkpoint_of(folder, step), MODEL)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return problem, backend.holds(step), bytes_read() - before


def bytes_read() -> int:
    """What this process has asked files (and pipes) for so far."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


class Ranks:
    """Processes that wait for work and do it as worlds of any size up to their number."""

    def __init__(self, number: int) -> None:
        # Children of a server that has imported everything begin at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.folder = tempfile.TemporaryDirectory()
        self.worlds = 0
        self.pipes, self.processes = [], []
        for rank in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def begin(self, world_size: int, work: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call `work(world, ...)` in the first `world_size` processes."""
        self.worlds += 1
        meeting = f"{self.folder.name}/{self.worlds}"
        for pipe in self.pipes[:world_size]:
            pipe.send((world_size, meeting, work, arguments, options))

    def finish(self, world_size: int) -> list[Any]:
        """What the calls returned. Raises what one of them raised."""
        results = [pipe.recv() for pipe in self.pipes[:world_size] if pipe.poll(100) or timed_out()]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def run(self, world_size: int, work: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        """`begin` and `finish`."""
        self.begin(world_size, work, *arguments, **options)
        return self.finish(world_size)

    def kill(self) -> None:
        """SIGKILL to all."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()


def timed_out() -> bool:
    raise AssertionError("a rank hangs")


def serve(rank: int, pipe: Connection) -> None:
    """What the processes do."""
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    while True:
        try:
            world_size, meeting, work, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            if world_size > 1:
                dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
            pipe.send(work(World(rank, world_size, rank, torch.device("cpu")), *arguments, **options))
        except Exception as error:
            pipe.send(error)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
