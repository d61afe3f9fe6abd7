"""Saves and loads a run's checkpoints. Saving copies this rank's state to the host and returns; a thread writes it.

    training thread   save: wait for the last write -> copy to host buffers        | trains on
    writing thread                                  agree on who writes what -> write, hash, fsync -> rank 0 publishes

The threads of all ranks talk through a gloo group of their own, so that what they send never meets what training sends.
"""

import shutil
import threading
import time
from dataclasses import asdict, replace
from datetime import timedelta
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from mindllm_engine.distributed.backend import STATE_KINDS, Backend, StateKind
from mindllm_engine.distributed.layout import Piece
from mindllm_engine.distributed.process_group import World, raise_together
from mindllm_engine.errors import CheckpointError
from mindllm_engine.models import ModelConfig
from mindllm_engine.training.checkpoint import (
    CheckpointState,
    checkpoint_of,
    first_difference,
    load_state,
    newest_checkpoint,
    remove_leftovers,
    temporary_of,
    way_out,
)
from mindllm_engine.training.checkpoint_storage import (
    Index,
    Parts,
    PartSavePlanner,
    ShardWriter,
    first_failure,
    read_parts,
)

# How long a run that ends with an error waits for a checkpoint that is being written.
SECONDS_TO_FINISH = 120.0

State = dict[StateKind, list[Tensor]]


class Checkpointer:
    """The checkpoints of one run. All ranks make it, and call `save`, `wait` and `load`, in the same order.

    Args:
        folder: where they lie.
        backend: whose state they hold.
        keep: newest ones kept; 0 for all.
        keep_every: those of every so many steps are kept for ever; 0 for none.
        timeout_minutes: how long a rank may keep the others waiting for its part of a checkpoint.

    Attributes:
        longest_save: seconds that a save has taken in the background; None before the first is done.
    """

    def __init__(
        self, folder: Path, backend: Backend, world: World, keep: int, keep_every: int, timeout_minutes: float
    ) -> None:
        if world.is_first:
            remove_leftovers(folder)  # here too, for a run that was killed at its end and has nothing left to save
        self.folder = folder
        self.backend = backend
        self.world = world
        self.group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            self.group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
        self.pieces = backend.pieces()
        self.buffers = self.allocate() if backend.saves_state else None
        self.planner = PartSavePlanner()
        self.writer = ShardWriter(world.rank, keep, keep_every)
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.longest_save: float | None = None

    def allocate(self) -> State:
        """Room for the state of this rank's pieces on the host, from which and to which a GPU copies at full speed."""
        sizes = [piece.elements for piece in self.pieces]
        pinned = self.world.device.type == "cuda"
        return {kind: list(torch.empty(sum(sizes), pin_memory=pinned).split(sizes)) for kind in STATE_KINDS}

    # Saving

    def save(self, state: CheckpointState) -> float:
        """Begin to save the backend's state as it is now.

        Returns:
            Seconds for which training stood still: to wait for the write before this one, and to copy.

        Raises:
            CheckpointError: on all ranks, if the checkpoint before this one could not be written.
        """
        start = time.perf_counter()
        self.wait()
        parts: dict[str, Parts] = {}
        if self.buffers is not None:
            copy(self.backend.read_state(), self.buffers)
            parts = parts_of(self.pieces, self.buffers)
        parts |= self.generators()
        if self.world.device.type == "cuda":
            torch.cuda.current_stream(self.world.device).synchronize()
        state = replace(state, updates=self.backend.updates, world_size=self.world.world_size)
        # A daemon, so that a process that ends with an error does not hang on a rank that is gone.
        self.thread = threading.Thread(target=self.write, args=(parts, state), name="checkpoint", daemon=True)
        self.thread.start()
        return time.perf_counter() - start

    def generators(self) -> dict[str, Parts]:
        """The states of this rank's random generators."""
        states = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.world.device)
        return {
            f"generator/{device}/{self.world.rank}": Parts(state.numel(), state.dtype, {0: state})
            for device, state in states.items()
        }

    def write(self, parts: dict[str, Parts], state: CheckpointState) -> None:
        """What the thread does; leaves in `error` what went wrong on any rank, on all of them."""
        start = time.perf_counter()
        self.writer.checkpoint, self.writer.state = checkpoint_of(self.folder, state.step), state
        try:
            dcp.save(
                parts,
                storage_writer=self.writer,
                planner=self.planner,
                process_group=self.group,
                no_dist=self.group is None,
            )
            self.longest_save = max(self.longest_save or 0.0, time.perf_counter() - start)
        except CheckpointException as failure:
            self.error = self.cannot_save(first_failure(failure))
        except Exception as error:  # the group itself has failed
            self.error = error

    def cannot_save(self, error: Exception) -> Exception:
        """What to tell the user. Nothing of the checkpoint is left, and the earlier ones are whole."""
        checkpoint = self.writer.checkpoint
        if self.world.is_first:
            shutil.rmtree(temporary_of(checkpoint), ignore_errors=True)
        if not isinstance(error, CheckpointError):
            return error
        return CheckpointError(
            f"{checkpoint}: cannot save the checkpoint ({error}); mend that and run the same command again to go on "
            f"from {newest_checkpoint(self.folder) or 'the beginning'}"
        )

    def wait(self) -> None:
        """Return when the last checkpoint is in its place.

        Raises:
            CheckpointError: on all ranks, if it could not be written.
        """
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        error, self.error = self.error, None
        raise_together(error, f"{self.writer.checkpoint}: another rank could not save its part of it")

    def close(self) -> None:
        """When a run ends with an error: let the write under way come to its end, if it does so soon."""
        if self.thread is not None:
            self.thread.join(SECONDS_TO_FINISH)

    # Loading

    def load(self, checkpoint: Path, model: ModelConfig) -> CheckpointState:
        """Give the backend, and this rank's random generators, the state in a checkpoint.

        The generators are left as they are where another number of ranks wrote it.

        Raises:
            CheckpointError: the same on all ranks, for a damaged checkpoint or one of another model; nothing has been
            changed then.
        """
        self.wait()
        state, index = self.open(checkpoint, model)
        buffers = self.buffers or self.allocate()
        generators = {}
        if state.world_size == self.world.world_size:
            generators = {name: kept for name, kept in self.generators().items() if index.elements(name)}
        try:
            read_parts(index, parts_of(self.pieces, buffers) | generators, self.group)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.way_out(checkpoint)}") from error
        self.backend.write_state(buffers, state.updates)
        for name, kept in generators.items():
            if name.startswith("generator/cuda/"):
                torch.cuda.set_rng_state(kept.parts[0], self.world.device)
            else:
                torch.set_rng_state(kept.parts[0])
        return state

    def open(self, checkpoint: Path, model: ModelConfig) -> tuple[CheckpointState, Index]:
        """What a checkpoint holds, after all ranks have found it good."""
        problem = None
        try:
            state = load_state(checkpoint)
            difference = first_difference(state.model, asdict(model), "model")
            if difference:
                raise CheckpointError(
                    f"{checkpoint}: the checkpoint is of another model: {difference}; choose another run.dir"
                )
            index = Index(checkpoint, state)
        except CheckpointError as error:
            problem = str(error)
        problems: list[str | None] = [problem] * self.world.world_size
        if self.group is not None:
            dist.all_gather_object(problems, problem, group=self.group)
        for problem in filter(None, problems):
            raise CheckpointError(problem)
        return state, index

    def way_out(self, checkpoint: Path) -> str:
        """`checkpoint.way_out`, for which rank 0 alone reads earlier checkpoints."""
        advice = [way_out(checkpoint, read_all=True) if self.world.is_first else ""]
        if self.group is not None:
            dist.broadcast_object_list(advice, src=0, group=self.group)
        return advice[0]


def parts_of(pieces: list[Piece], state: State) -> dict[str, Parts]:
    """The state of these pieces by the names it has in checkpoints."""
    named: dict[str, Parts] = {}
    for kind, tensors in state.items():
        for piece, tensor in zip(pieces, tensors, strict=True):
            whole = named.setdefault(f"{kind}/{piece.name}", Parts(prod(piece.shape), torch.float32, {}))
            whole.parts[piece.first] = tensor
    return named


def copy(source: State, target: State) -> None:
    """Begin to copy state to the host. The current stream has done so when it is next waited for."""
    for kind in STATE_KINDS:
        for ours, theirs in zip(source[kind], target[kind], strict=True):
            theirs.copy_(ours, non_blocking=True)
